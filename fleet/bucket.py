"""Create the S3 bucket that `S3_BUCKET` names. Idempotent."""

import os
import time
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError

BUCKET_VARIABLE = "S3_BUCKET"
START_SECONDS = 60.0
"""How long to wait for an S3 server that is just starting."""


def ensure_bucket() -> None:
    """Create the bucket if it does not exist.

    Raises:
        SystemExit: the S3 server does not answer or refuses a request.
    """
    name = os.environ[BUCKET_VARIABLE]
    client = boto3.client("s3")
    where = f"bucket {name!r} at {client.meta.endpoint_url}"
    try:
        _wait_for(client)
        if not _exists(client, name):
            client.create_bucket(Bucket=name)
    except (BotoCoreError, ClientError) as error:
        raise SystemExit(f"error: {where}: {error}; check the S3 variables in .env") from None
    print(f"{where} exists")


def _wait_for(client: Any) -> None:
    give_up_at = time.monotonic() + START_SECONDS
    while True:
        try:
            client.list_buckets()
        except EndpointConnectionError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(1)
        else:
            return


def _exists(client: Any, name: str) -> bool:
    try:
        client.head_bucket(Bucket=name)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return False
        raise
    return True
