"""The S3 credentials of an Airflow connection, as environment variables for a command.

The command gets the credentials in its environment, because only the user that runs the command
can read that environment. Other users can read the command line and Airflow's rendered fields.
"""

from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException

_OTHER_SOURCES = ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE")


def with_s3_connection(environment: dict[str, str], connection_id: str) -> dict[str, str]:
    """Replace the credentials in an environment with those of an Airflow connection.

    The connection has the type `aws`, and Airflow's own code reads its credentials: login and
    password, or a role to assume (`role_arn`), with the session token if there is one. Endpoint and
    region are replaced if the connection's extras name them. Credentials with a session token
    expire, so each task requests new credentials.

    Args:
        environment: the command's environment.
        connection_id: the connection's id.

    Returns:
        The new environment; `environment` itself if there is no such connection.

    Raises:
        AirflowFailException: neither the connection nor another source that boto3 searches has
            credentials, or the connection's role is refused.
    """
    try:
        Connection.get(connection_id)
    except AirflowNotFoundException:
        return environment
    # Imported here, because the import takes a second and is needed only if there is a connection.
    from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
    from botocore.exceptions import ClientError

    hook = AwsBaseHook(aws_conn_id=connection_id, client_type="s3")
    try:
        has_credentials = hook.get_session().get_credentials() is not None
    except ClientError as error:
        raise AirflowFailException(
            f"the role_arn of Airflow connection {connection_id} was refused ({error}); correct "
            "role_arn in the connection's extras, or use credentials that may assume the role"
        ) from None
    if not has_credentials:
        raise AirflowFailException(
            f"the Airflow connection {connection_id} has no credentials; set its login (access "
            "key) and password (secret key), or the extra role_arn, or delete the connection"
        )
    credentials = hook.get_credentials()
    found = {
        "AWS_ACCESS_KEY_ID": credentials.access_key,
        "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
        "AWS_SESSION_TOKEN": credentials.token,
        "AWS_ENDPOINT_URL": hook.conn_config.get_service_endpoint_url("s3"),
        "AWS_DEFAULT_REGION": hook.region_name,
    }
    kept = {name: value for name, value in environment.items() if name not in _OTHER_SOURCES}
    return kept | {name: value for name, value in found.items() if value}
