"""Make the S3 bucket of a store on this machine. Harmless when repeated."""

import os
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

BUCKET_VARIABLE = "S3_BUCKET"
STARTING = Config(retries={"mode": "standard", "total_max_attempts": 8}, connect_timeout=5)
"""Of a store that is just starting: asked again for about a minute."""


def ensure_bucket() -> None:
    """See that the bucket is there, or make it.

    Raises:
        SystemExit: the store does not answer, or refuses.
    """
    name = os.environ[BUCKET_VARIABLE]
    client = boto3.client("s3", config=STARTING)
    where = f"bucket {name!r} of {client.meta.endpoint_url}"
    try:
        if not _exists(client, name):
            client.create_bucket(Bucket=name)
    except (BotoCoreError, ClientError) as error:
        raise SystemExit(f"error: {where}: {error}; see the S3 variables of .env") from None
    print(f"{where} is there")


def _exists(client: Any, name: str) -> bool:
    try:
        client.head_bucket(Bucket=name)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return False
        raise
    return True
