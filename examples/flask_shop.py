"""A shop with Flask and PyMongo's `MongoClient`.

Run it with `MONGODB_URI` set: `gunicorn --chdir examples 'flask_shop:create_app()'`. It sets up telemetry in code and
exports it by OTLP, unless it runs under `opentelemetry-instrument`.
"""

import contextvars
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from flask import Flask, Response, jsonify, request
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from pymongo import MongoClient, ReturnDocument
from pymongo.database import Database
from pymongo.errors import BulkWriteError, DuplicateKeyError

from opentelemetry_mongo_events import MongoEventsInstrumentor


def create_app() -> Flask:
    """Set up telemetry, then the clients, then the routes. Runs in the worker process, after the fork."""
    app = Flask(__name__)
    if not MongoEventsInstrumentor().is_instrumented_by_opentelemetry:
        instrument(app)
    uri = os.environ.get("MONGODB_URI", "mongodb://localhost:27017")
    client: MongoClient[dict[str, Any]] = MongoClient(uri, serverSelectionTimeoutMS=10_000)
    narrow_client: MongoClient[dict[str, Any]] = MongoClient(uri, serverSelectionTimeoutMS=10_000, maxPoolSize=1)
    shop = client.get_default_database("shop")  # the URI's database, if it has one
    stock_up(shop)
    add_routes(app, shop, narrow_client[shop.name])
    return app


def instrument(app: Flask) -> None:
    """Create the providers, and instrument this application and the clients that are created from now on."""
    tracer_provider = TracerProvider()
    tracer_provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(tracer_provider)
    metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())]))
    FlaskInstrumentor().instrument_app(app)
    MongoEventsInstrumentor().instrument()


def stock_up(shop: Database[dict[str, Any]]) -> None:
    """Add the products, if there are none."""
    shop.users.create_index("email", unique=True)
    if shop.products.find_one() is None:
        goods = [{"_id": number, "name": f"tea No. {number}", "stock": 100} for number in range(180)]
        with suppress(BulkWriteError):  # another worker does the same at this moment
            shop.products.insert_many(goods, ordered=False)


def add_routes(app: Flask, shop: Database[dict[str, Any]], narrow_shop: Database[dict[str, Any]]) -> None:
    """Add the routes of the shop."""

    @app.get("/products")
    def products() -> Response:
        """List all products: a `find`, and three `getMore` that link to it."""
        return jsonify([product["name"] for product in shop.products.find({}, {"name": 1}, batch_size=50)])

    @app.post("/users")
    def sign_up() -> tuple[Response, int]:
        """Add a user. If the user already exists, the `insert` fails with a duplicate key."""
        try:
            shop.users.insert_one({"email": request.get_json()["email"]})
        except DuplicateKeyError:
            return jsonify(error="that user already exists"), 409
        return jsonify(), 201

    @app.post("/orders")
    def buy() -> tuple[Response, int]:
        """Decrement the stock of a product and insert an order: two commands."""
        order = request.get_json()
        product = shop.products.find_one_and_update(
            {"_id": order["product"], "stock": {"$gt": 0}},
            {"$inc": {"stock": -1}},
            return_document=ReturnDocument.AFTER,
        )
        if product is None:
            return jsonify(error="sold out"), 404
        shop.orders.insert_one({"product": order["product"], "email": order["email"]})
        return jsonify(left=product["stock"]), 201

    @app.get("/report")
    def report() -> Response:
        """Report the best sellers: an `aggregate`."""
        best = shop.orders.aggregate(
            [{"$group": {"_id": "$product", "sold": {"$sum": 1}}}, {"$sort": {"sold": -1, "_id": 1}}, {"$limit": 10}]
        )
        return jsonify([{"product": each["_id"], "sold": each["sold"]} for each in best])

    @app.get("/rush")
    def rush() -> Response:
        """Send ten concurrent commands over one connection: each `find` span shows how long the command waited."""

        def stock(number: int) -> int:
            product = narrow_shop.products.find_one({"_id": number})
            return 0 if product is None else int(product["stock"])

        with ThreadPoolExecutor(10) as customers:
            # Each call runs in a copy of this request's context: in a new thread the context is empty.
            found = [customers.submit(contextvars.copy_context().run, stock, number) for number in range(10)]
            return jsonify(sum(each.result() for each in found))
