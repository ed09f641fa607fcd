"""What opens an S3, from an Airflow connection, as variables for a command.

Variables of a process are read by its own user alone; a command line and a rendered field by all.
"""

from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException

_OTHER_SOURCES = ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE")


def with_s3_connection(environment: dict[str, str], connection_id: str) -> dict[str, str]:
    """Put a connection's credentials in the place of those that an environment holds.

    Airflow's own reading of a connection of type `aws` decides: login and password, else a role
    to assume (`role_arn`), each with the session token that belongs to it. Address and region
    are replaced where the connection's extras name them. It expires with its token: a task asks
    anew.

    Args:
        environment: of a command.
        connection_id: the connection's id.

    Returns:
        The new environment; `environment` itself where there is no such connection.

    Raises:
        AirflowFailException: the connection holds no credentials and none are found beside it,
            or its role is refused.
    """
    try:
        Connection.get(connection_id)
    except AirflowNotFoundException:
        return environment
    # Costs a task a second, and most have no connection.
    from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
    from botocore.exceptions import ClientError

    hook = AwsBaseHook(aws_conn_id=connection_id, client_type="s3")
    try:
        has_credentials = hook.get_session().get_credentials() is not None
    except ClientError as error:
        raise AirflowFailException(
            f"the Airflow connection {connection_id}: its role_arn is refused ({error}); mend its "
            "extras, or the credentials that assume the role"
        ) from None
    if not has_credentials:
        raise AirflowFailException(
            f"the Airflow connection {connection_id} holds no credentials; set its login (access "
            "key) and password (secret key), or the extra role_arn, or delete it"
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
