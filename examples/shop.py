"""A small shop on MongoDB. It uses OpenTelemetry's API, as applications do, but not this package.

Its client has at most one connection: a command that needs it while it is in use has to wait.

Run it with `MONGODB_URI` set; `examples/demo.py` runs it under `opentelemetry-instrument`.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from opentelemetry import trace
from pymongo import MongoClient
from pymongo.errors import AutoReconnect, DuplicateKeyError, OperationFailure

tracer = trace.get_tracer("shop")


def main() -> None:
    """Open the shop and serve a few customers."""
    client: MongoClient[Any] = MongoClient(os.environ["MONGODB_URI"], maxPoolSize=1, serverSelectionTimeoutMS=5000)
    with client:
        shop = client.shop
        open_shop(shop)
        browse(shop)
        order(shop, "espresso cup")
        stock_up(shop)
        sign_up(shop, "alice@example.org")
        sign_up(shop, "alice@example.org")
        report(shop)
        pay(client)
        sell_through_the_night(shop)


def open_shop(shop: Any) -> None:
    """Add the products."""
    with tracer.start_as_current_span("open shop"):
        shop.users.create_index("email", unique=True)
        shop.products.insert_many(
            [{"_id": number, "name": f"{kind} cup", "stock": 10} for number, kind in enumerate(["espresso", "coffee"])]
            + [{"_id": 100 + number, "name": f"tea No. {number}", "stock": 5} for number in range(200)]
        )
    say("opened with 202 products")


def browse(shop: Any) -> None:
    """List all products, which takes more than one batch."""
    with tracer.start_as_current_span("GET /products"):
        products = list(shop.products.find({}, {"name": 1}))
    say(f"listed {len(products)} products")


def sign_up(shop: Any, email: str) -> None:
    """Add a user, who may already exist."""
    with tracer.start_as_current_span("POST /users"):
        try:
            shop.users.insert_one({"email": email})
            say("signed a user up")
        except DuplicateKeyError:
            say("that user already exists")


def order(shop: Any, name: str) -> None:
    """Decrement the stock of a product and insert an order."""
    with tracer.start_as_current_span("POST /orders"):
        product = shop.products.find_one_and_update({"name": name}, {"$inc": {"stock": -1}})
        shop.orders.insert_one({"product": product["_id"], "by": "alice@example.org"})
    say(f"sold one {name}")


def stock_up(shop: Any) -> None:
    """Insert the deliveries of three suppliers at the same time."""

    def take_in(supplier: int) -> None:
        with tracer.start_as_current_span("POST /deliveries"):
            shop.deliveries.insert_many([{"from": supplier, "name": f"tea No. {number}"} for number in range(4000)])

    with ThreadPoolExecutor(3, "shop") as suppliers:
        list(suppliers.map(take_in, range(3)))
    say("took in three deliveries of 4000 products")


def report(shop: Any) -> None:
    """Report the sales. The first attempt has a mistake in its pipeline."""
    with tracer.start_as_current_span("GET /report"):
        try:
            list(shop.orders.aggregate([{"$groop": {"_id": "$product"}}]))
        except OperationFailure:
            say("a report with a mistake")
        list(shop.orders.aggregate([{"$group": {"_id": "$product", "sold": {"$sum": 1}}}]))


def pay(client: MongoClient[Any]) -> None:
    """Take a payment in a transaction. If the server goes down in the meantime, the transaction is repeated."""

    def take(session: Any) -> None:
        client.shop.payments.insert_one({"by": "alice@example.org", "amount": 12}, session=session)
        say("waits for the bank")
        time.sleep(0.7)
        client.shop.orders.update_one({"by": "alice@example.org"}, {"$set": {"paid": True}}, session=session)

    with tracer.start_as_current_span("POST /payments"), client.start_session() as session:
        session.with_transaction(take)
    say("took a payment")


def sell_through_the_night(shop: Any) -> None:
    """Insert orders for at most five seconds, until one of them has to wait for the server."""
    say("sells through the night")
    morning = time.monotonic() + 5
    while (evening := time.monotonic()) < morning:
        with tracer.start_as_current_span("POST /orders"):
            try:
                shop.orders.insert_one({"product": 0, "by": "bob@example.org"})
            except AutoReconnect:
                say("lost an order: the server is down")
        if (waited := time.monotonic() - evening) > 0.5:
            say(f"waited {waited:.1f} s for the server, and sold on")
            break
        time.sleep(0.3)


def say(what: str) -> None:
    """Print to stderr, because telemetry may go to stdout."""
    sys.stderr.write(f"shop: {what}\n")  # a single write: several threads may print at once


if __name__ == "__main__":
    main()
