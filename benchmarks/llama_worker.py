"""llama.cpp in a process of its own, for its threads and torch's cannot share one: `llama_worker.py MODEL THREADS PLAIN`.

`llama_worker.py requantise MODEL TARGET` writes the model in Q4_0 and ends.

PLAIN 1 keeps weights in the file's layout, without the rearranged ones for AMX and others. Reads lines of JSON,
{"ids": [...], "new": n}; reads that prompt, decodes n tokens greedily and answers with their ids.
"""

from __future__ import annotations

import json
import sys

import llama_cpp


def requantise(source: str, target: str) -> None:
    """Write a file of 4-bit weights in Q4_0. Raises OSError if that fails."""
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, True
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), options):
        raise OSError(f"llama.cpp could not write {target}")


def main() -> None:
    """Answer until the input ends."""
    if sys.argv[1] == "requantise":
        requantise(*sys.argv[2:])
        return
    path, threads, plain = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "1"
    if plain:
        defaults = llama_cpp.llama_model_default_params()
        defaults.use_extra_bufts = False
        llama_cpp.llama_cpp.llama_model_default_params = lambda: defaults
    model = llama_cpp.Llama(path, n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)
    for line in sys.stdin:
        asked = json.loads(line)
        found: list[int] = []
        model.reset()
        if asked["new"]:
            for id in model.generate(asked["ids"], temp=0.0):
                found.append(id)
                if len(found) == asked["new"]:
                    break
        else:
            model.eval(asked["ids"])
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
