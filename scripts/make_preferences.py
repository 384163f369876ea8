"""Writes preferences for deploy/runs/dpo.yaml: additions with a better and a worse answer each, as JSON Lines.

python scripts/make_preferences.py runs/preferences.jsonl

The better answer is the sum. The worse one is, in turn, another number, or the sum in a sentence. The same seed gives the
same file.
"""

import argparse
import json
import random
from pathlib import Path

SENTENCES = ("The answer is {}.", "{a} plus {b} equals {}.", "Let me think. It must be {}!", "Sure! {a} + {b} = {}")


def preferences(size: int, seed: int) -> list[dict[str, str]]:
    """`size` records with the keys prompt, chosen and rejected."""
    random_numbers = random.Random(seed)
    records = []
    for number in range(size):
        a, b = random_numbers.randint(10, 99), random_numbers.randint(10, 99)
        wrong = a + b + random_numbers.choice([-10, -9, -2, -1, 1, 2, 9, 10])
        sentence = random_numbers.choice(SENTENCES).format(a + b, a=a, b=b)
        rejected = sentence if number % 2 else str(wrong)
        records.append({"prompt": f"What is {a} + {b}?", "chosen": str(a + b), "rejected": rejected})
    return records


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description="Writes additions with a better and a worse answer each.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    arguments.path.parent.mkdir(parents=True, exist_ok=True)
    records = preferences(arguments.size, arguments.seed)
    arguments.path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


if __name__ == "__main__":
    main()
