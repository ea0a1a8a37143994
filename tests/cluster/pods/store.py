"""The bucket that metadata and data of executions lie in."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import boto3
from botocore.config import Config as BotoConfig
from botocore.exceptions import ClientError, EndpointConnectionError
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)
KEY, SECRET, REGION = "pods", "pods-secret", "us-east-1"


@dataclass(frozen=True)
class Store:
    """A bucket behind an endpoint of S3's protocol."""

    endpoint: str
    bucket: str = "flyte"

    @property
    def root(self) -> str:
        """Url of the bucket."""
        return f"s3://{self.bucket}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to read and write here."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": REGION,
        }

    @cached_property
    def client(self) -> Any:
        """A boto3 client; threads may share it."""
        settings = BotoConfig(region_name=REGION, max_pool_connections=32, s3={"addressing_style": "path"})
        return boto3.client(
            "s3", endpoint_url=self.endpoint, aws_access_key_id=KEY, aws_secret_access_key=SECRET, config=settings
        )

    def key(self, url: str) -> str:
        """The key behind a url of this bucket."""
        prefix = f"{self.root}/"
        if not url.startswith(prefix):
            raise ValueError(f"expected a url that starts with {prefix}, got {url}")
        return url.removeprefix(prefix)

    def read(self, url: str) -> bytes | None:
        """What lies at a url; None if there is nothing."""
        try:
            body: bytes = self.client.get_object(Bucket=self.bucket, Key=self.key(url))["Body"].read()
        except self.client.exceptions.NoSuchKey:
            return None
        return body

    def write(self, url: str, content: bytes) -> None:
        """Put bytes at a url."""
        self.client.put_object(Bucket=self.bucket, Key=self.key(url), Body=content)

    def message(self, url: str, empty: M) -> M | None:
        """The protobuf at a url, read into an empty message; None if there is nothing."""
        content = self.read(url)
        if content is None:
            return None
        empty.ParseFromString(content)
        return empty

    def upload(self, path: Path, url: str) -> str:
        """Put a file at a url, or a folder's files under it; gives the url back."""
        files = {path: url} if path.is_file() else {p: f"{url}/{p.relative_to(path)}" for p in path.rglob("*")}
        for file, target in files.items():
            if file.is_file():
                self.write(target, file.read_bytes())
        return url

    def names(self, url: str) -> list[str]:
        """Urls of all that lies under a url, sorted."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.key(f"{url}/"))
        return [f"{self.root}/{entry['Key']}" for page in pages for entry in page.get("Contents", [])]

    def sign_url(self, url: str) -> str:
        """An http address that a client without credentials may PUT what belongs at a url."""
        url_text: str = self.client.generate_presigned_url("put_object", {"Bucket": self.bucket, "Key": self.key(url)})
        return url_text


@contextlib.contextmanager
def serve_store() -> Iterator[Store]:
    """A fresh bucket in a moto server of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        store = Store(f"http://127.0.0.1:{port}")
        _create(store, server)
        yield store
    finally:
        server.kill()
        server.wait()


def _create(store: Store, server: subprocess.Popen[bytes], patience: float = 60.0) -> None:
    """Make the bucket as soon as the server answers."""
    deadline = time.monotonic() + patience
    while True:
        try:
            store.client.create_bucket(Bucket=store.bucket)
            return
        except (EndpointConnectionError, ClientError) as error:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the moto server at {store.endpoint} does not answer: {error}") from error
            time.sleep(0.05)
