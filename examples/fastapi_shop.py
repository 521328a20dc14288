"""A shop with FastAPI and PyMongo's `AsyncMongoClient`.

Run it with `MONGODB_URI` set: `uvicorn --app-dir examples fastapi_shop:app`. It sets up telemetry in code and exports
it by OTLP, unless it runs under `opentelemetry-instrument`.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, status
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from pydantic import BaseModel
from pymongo import AsyncMongoClient, ReturnDocument
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import BulkWriteError, DuplicateKeyError

from opentelemetry_mongo_events import MongoEventsInstrumentor


class User(BaseModel):
    """A user who signs up."""

    email: str


class Order(BaseModel):
    """An order of one product."""

    product: int
    email: str


def instrument() -> None:
    """Create the providers, and instrument the clients that are created from now on."""
    tracer_provider = TracerProvider()
    tracer_provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(tracer_provider)
    metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())]))
    MongoEventsInstrumentor().instrument()


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Set up telemetry, then the clients, in the worker process and on its event loop; shut down in reverse order."""
    if not MongoEventsInstrumentor().is_instrumented_by_opentelemetry:
        instrument()
    uri = os.environ.get("MONGODB_URI", "mongodb://localhost:27017")
    async with (
        AsyncMongoClient[dict[str, Any]](uri, serverSelectionTimeoutMS=10_000) as client,
        AsyncMongoClient[dict[str, Any]](uri, serverSelectionTimeoutMS=10_000, maxPoolSize=1) as narrow_client,
    ):
        shop = client.get_default_database("shop")  # the URI's database, if it has one
        await stock_up(shop)
        yield {"shop": shop, "narrow_shop": narrow_client[shop.name]}
    await asyncio.to_thread(send_the_rest)


def send_the_rest() -> None:
    """Export what is left: uvicorn ends with the signal that it received, so Python runs no exit handlers."""
    for provider in (trace.get_tracer_provider(), metrics.get_meter_provider()):
        if isinstance(provider, TracerProvider | MeterProvider):
            provider.shutdown()


async def stock_up(shop: AsyncDatabase[dict[str, Any]]) -> None:
    """Add the products, if there are none."""
    await shop.users.create_index("email", unique=True)
    if await shop.products.find_one() is None:
        goods = [{"_id": number, "name": f"tea No. {number}", "stock": 100} for number in range(180)]
        with suppress(BulkWriteError):  # another worker does the same at this moment
            await shop.products.insert_many(goods, ordered=False)


# FastAPI creates spans for its requests. Those of the steps inside a request are disabled, for a shorter trace.
app = FastAPI(title="Shop", lifespan=lifespan, telemetry={"operation_spans": False})


def shop_of(request: Request) -> AsyncDatabase[dict[str, Any]]:
    """The database that the lifespan opened."""
    shop: AsyncDatabase[dict[str, Any]] = request.state.shop
    return shop


Shop = Annotated[AsyncDatabase[dict[str, Any]], Depends(shop_of)]


@app.get("/products")
async def products(shop: Shop) -> list[str]:
    """List all products: a `find`, and three `getMore` that link to it."""
    return [product["name"] async for product in shop.products.find({}, {"name": 1}, batch_size=50)]


@app.post("/users", status_code=status.HTTP_201_CREATED)
async def sign_up(user: User, shop: Shop) -> None:
    """Add a user. If the user already exists, the `insert` fails with a duplicate key, and the request with a 409."""
    try:
        await shop.users.insert_one({"email": user.email})
    except DuplicateKeyError:
        raise HTTPException(status.HTTP_409_CONFLICT, "that user already exists") from None


@app.post("/orders", status_code=status.HTTP_201_CREATED)
async def buy(order: Order, shop: Shop) -> dict[str, int]:
    """Decrement the stock of a product and insert an order: two commands."""
    product = await shop.products.find_one_and_update(
        {"_id": order.product, "stock": {"$gt": 0}}, {"$inc": {"stock": -1}}, return_document=ReturnDocument.AFTER
    )
    if product is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "sold out")
    await shop.orders.insert_one({"product": order.product, "email": order.email})
    return {"left": product["stock"]}


@app.get("/report")
async def report(shop: Shop) -> list[dict[str, int]]:
    """Report the best sellers: an `aggregate`."""
    best = await shop.orders.aggregate(
        [{"$group": {"_id": "$product", "sold": {"$sum": 1}}}, {"$sort": {"sold": -1, "_id": 1}}, {"$limit": 10}]
    )
    return [{"product": each["_id"], "sold": each["sold"]} async for each in best]


@app.get("/rush")
async def rush(request: Request) -> int:
    """Send ten concurrent commands over one connection: each `find` span shows how long the command waited."""
    products = request.state.narrow_shop.products
    found = await asyncio.gather(*(products.find_one({"_id": number}) for number in range(10)))
    return sum(product["stock"] for product in found)
