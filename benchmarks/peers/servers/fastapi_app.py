"""FastAPI as many write it: the session is called in the handler; no batching."""

from fastapi import FastAPI, Request, Response
from session import Model, image_of

app, model = FastAPI(), Model()


@app.post("/predict")
async def predict(request: Request) -> Response:
    """One image in, its probabilities out."""
    return Response(model(image_of(await request.body())[None]).tobytes(), media_type="application/octet-stream")
