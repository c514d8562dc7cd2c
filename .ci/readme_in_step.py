"""README.md and README.ja.md must hold the same commands and the same pictures, in the same order."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def facts(path: Path) -> list[str]:
    """The code blocks, pictures and numbers in tables of a README."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:bash|python)\n(.*?)```", text, flags=re.DOTALL)
    pictures = [Path(p).name.replace("-ja", "").replace("-en", "") for p in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)]
    return [line for block in blocks for line in block.splitlines()] + pictures


def main() -> int:
    """0 if in step; prints the first difference otherwise."""
    english, japanese = facts(Path("README.md")), facts(Path("README.ja.md"))
    for a, b in zip(english, japanese, strict=False):
        if re.sub(r"\s*#.*", "", a) != re.sub(r"\s*#.*", "", b):
            print(f"READMEs differ:\n  {a}\n  {b}")
            return 1
    if len(english) != len(japanese):
        print(f"READMEs differ in length: {len(english)} and {len(japanese)} lines of code and pictures")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
