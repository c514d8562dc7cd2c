"""`kiban serve`: models behind routes that OpenAI's clients speak, with keys, limits, a ledger and metrics."""
