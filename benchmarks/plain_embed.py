"""sentence-transformers behind a plain FastAPI app, as one would write it in an afternoon: `plain_embed.py FOLDER PORT`."""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer


class Body(BaseModel):
    """OpenAI's body, as far as it is needed."""

    model: str
    input: list[str]


def main() -> None:
    """Serve until it is ended."""
    folder, port = sys.argv[1], int(sys.argv[2])
    model = SentenceTransformer(folder, device="cpu")
    app = FastAPI()

    @app.get("/healthz")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/embeddings")
    def embed(body: Body) -> dict[str, Any]:
        vectors = model.encode(body.input, normalize_embeddings=True)
        data = [{"object": "embedding", "index": i, "embedding": v.tolist()} for i, v in enumerate(vectors)]
        return {"object": "list", "model": body.model, "data": data}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()
