"""A reward that is served elsewhere."""

from __future__ import annotations

import base64
import os
from typing import Any
from urllib.parse import urlsplit

import requests
import torch
from requests.adapters import HTTPAdapter
from torch import Tensor
from urllib3 import Retry

from raypref import images as pictures

BUSY = (429, 500, 502, 503, 504)  # statuses worth another attempt


class Http:
    """What the service at `url` answers; higher is better, and the scale is its own.

    A batch is one POST of JSON, {"images": [PNG in base64, ...], "prompts": [...]}, answered by {"scores": [a number an
    image]}. `timeout_s`: seconds to wait for a connection and for data. `retries`: further attempts, each after a longer
    pause, when the service cannot be reached, does not answer in time or is busy (429, 5xx). `headers_env`: name of a header
    to the environment variable that holds its value, since a token does not belong into a configuration.

    Calls raise RuntimeError when the service fails, ValueError when its answer is not one.
    """

    def __init__(
        self,
        url: str,
        timeout_s: float = 60.0,
        retries: int = 4,
        headers_env: dict[str, str] | None = None,
        device: str = "cpu",
    ):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise ValueError(f"url: {parts.hostname or url!r} must be http(s)://host/path, without user or password")
        if not timeout_s > 0 or retries < 0:
            raise ValueError(f"timeout_s={timeout_s} must be above 0, retries={retries} 0 or more")
        self.url, self.timeout_s, self.retries = url, timeout_s, retries
        self.session = requests.Session()
        retry = Retry(
            retries,
            backoff_factor=0.5,
            status_forcelist=BUSY,
            allowed_methods=["POST"],
            raise_on_status=False,
            respect_retry_after_header=False,  # it may ask for hours
        )
        self.session.mount(f"{parts.scheme}://", HTTPAdapter(max_retries=retry))
        for header, variable in dict(headers_env or {}).items():
            if not os.environ.get(variable):
                raise ValueError(
                    f"headers_env.{header}: the environment variable {variable!r} is not set on this worker"
                )
            self.session.headers[header] = os.environ[variable].strip()

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        files = pictures.encode_many(pictures.to_uint8(images), "png", pictures.THREADS)
        body = {"images": [base64.b64encode(file).decode() for file in files], "prompts": prompts}
        try:
            # a redirect would take the headers elsewhere, and a POST becomes a GET on the way
            answer = self.session.post(self.url, json=body, timeout=self.timeout_s, allow_redirects=False)
        except requests.RequestException as error:
            raise RuntimeError(
                f"{self.url}: no answer in {self.retries + 1} attempt(s) of {self.timeout_s:g} s: {error}"
            ) from error
        if answer.status_code != 200:
            raise RuntimeError(f"{self.url}: status {answer.status_code} {answer.reason}: {answer.text[:200]}")
        return torch.tensor(self._scores(answer, len(files)), dtype=torch.float32)

    def _scores(self, answer: requests.Response, number: int) -> list[float]:
        try:
            scores: Any = answer.json()["scores"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{self.url}: the answer is not {{"scores": [...]}}: {answer.text[:200]}') from error
        if not isinstance(scores, list) or not all(type(score) in (int, float) for score in scores):
            raise ValueError(f"{self.url}: scores must be a list of numbers, not {str(scores)[:200]}")
        if len(scores) != number:
            raise ValueError(f"{self.url}: {len(scores)} scores for {number} images; one an image, in their order")
        return scores
