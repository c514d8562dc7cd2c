"""A grammar that a client sent is compiled first in a child process, which is killed if it takes too long.

The child is this file, run with Python's own `-I` so that nothing of a working folder is imported. It reads one JSON line
{"grammar": ...} and writes one {"error": ...}; its tokens are single bytes, since what takes long hangs on the grammar.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,
}


class Trial:
    """The child process; it starts with the first grammar and again after it was killed. Several threads may ask."""

    def __init__(self, seconds: float = 5.0) -> None:
        self.seconds = seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def error(self, grammar: str) -> str:
        """Why a grammar cannot be used, or "". Blocks for as long as the limit at most, and for those before."""
        with self._lock:
            child = self._child if self._child is not None and self._child.poll() is None else self._start()
            self._child = child
            assert child.stdin is not None and child.stdout is not None
            timer = threading.Timer(self.seconds, child.kill)
            timer.start()
            try:
                child.stdin.write(json.dumps({"grammar": grammar}).encode() + b"\n")
                child.stdin.flush()
                answer = child.stdout.readline()
            except OSError:
                answer = b""
            finally:
                timer.cancel()
            if not answer:
                self._stop()
                return f"takes more than {self.seconds:g} s or too much memory to compile"
            return str(json.loads(answer)["error"])

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._stop()

    def _start(self) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()  # it says when it is ready, so that its start does not count
        return child

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    pipe.close()
            self._child = None


class _Bytes:
    """A tokenizer of bytes, as llguidance takes one."""

    eos_token_id, bos_token_id = 256, None
    tokens = (*(bytes([i]) for i in range(256)), b"<end>")
    special_token_ids = (256,)

    def __call__(self, text: Any) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def _child() -> None:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
    tokenizer = LLTokenizer(TokenizerWrapper(_Bytes()))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        matcher = LLMatcher(
            tokenizer, json.loads(line)["grammar"], limits=LLParserLimits(**LIMITS, verbose_errors=False), log_level=0
        )
        if not matcher.is_error():
            matcher.compute_bitmask()
        sys.stdout.write(json.dumps({"error": matcher.get_error()}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _child()
