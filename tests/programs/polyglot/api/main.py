"""The shop's API: what there is, and what somebody wants of it."""

import json
import os
from pathlib import Path

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

app = FastAPI()
catalogue = {product["id"]: product for product in json.loads(Path(__file__).with_name("catalogue.json").read_text())}


class Order(BaseModel):
    product: str
    count: int = Field(gt=0, le=100)


@app.get("/api/")
async def index():
    return {"shop": os.environ["SHOP_NAME"], "products": len(catalogue)}


@app.get("/api/products")
async def products():
    return list(catalogue.values())


@app.get("/api/products/{product}")
async def product(product: str):
    if product not in catalogue:
        raise HTTPException(404, f"there is no {product}")
    return catalogue[product]


@app.post("/api/orders", status_code=201)
async def order(order: Order):
    chosen = await product(order.product)
    return {"product": chosen["name"], "count": order.count, "total": order.count * chosen["price"]}
