"""Simulates customers of a web shop until it is stopped, so that a dashboard has something to show.

Run it with the address of the shop: `python examples/customers.py http://localhost:8000`.
"""

import json
import random
import sys
import time
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen


def main(shop: str) -> None:
    """Send requests in a loop: look, sign up, buy, and many requests at once."""
    while True:
        visit(shop, "/products")
        customer = f"customer-{random.randrange(1000)}@example.org"  # noqa: S311  # not a secret
        visit(shop, "/users", {"email": customer})
        for _ in range(5):
            visit(shop, "/orders", {"email": customer, "product": random.randrange(180)})  # noqa: S311  # likewise
        visit(shop, "/report")
        visit(shop, "/rush")
        time.sleep(1)


def visit(shop: str, path: str, body: dict[str, Any] | None = None) -> None:
    """Send one request. Server errors and failed connections are printed; client errors are expected."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"{shop}{path}", data, {"Content-Type": "application/json"})  # noqa: S310  # it is an HTTP URL
    try:
        with urlopen(request, timeout=30) as response:  # noqa: S310  # likewise
            response.read()
    except HTTPError as error:
        if error.code >= 500:
            print(f"{path}: {error}")
    except (URLError, TimeoutError) as error:
        print(f"{path}: {error}")
        time.sleep(1)


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8000")
    except KeyboardInterrupt:
        print("closing time")
