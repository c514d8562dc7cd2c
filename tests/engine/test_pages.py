"""Pages are never lost or given twice, and what lies in them is found again."""

from __future__ import annotations

import random

import torch

from kiban.engine.pages import PAGE, PagedKeys, Pages, digests, places_of, span_of
from kiban.families.llama import LlamaConfig


def test_pages_follow_each_other_where_they_can() -> None:
    pages = Pages(64)
    first: list[int] = []
    second: list[int] = []
    pages.grow(first, 3)
    pages.grow(second, 2)
    for _ in range(5):  # both grow in turns
        pages.grow(first, 1)
        pages.grow(second, 1)
    for held in (first, second):
        assert held == list(range(held[0], held[0] + len(held)))
    assert not set(first) & set(second) and pages.num_used == 15
    pages.check()


def test_a_known_page_is_shared_and_kept_until_room_is_needed() -> None:
    pages = Pages(4)
    first: list[int] = []
    pages.grow(first, 2)
    pages.know(first[0], b"a")
    pages.know(first[1], b"b")
    assert pages.share(b"a") == first[0] and pages.share(b"z") is None
    shared, held = [first[0]], list(first)
    pages.release(first)
    assert first == [] and pages.num_used == 1 and pages.num_idle == 1
    pages.release(shared)
    assert (pages.num_used, pages.num_idle, pages.num_available) == (0, 2, 4)
    pages.check()
    taken: list[int] = []
    pages.grow(taken, 3)  # one idle page must go: b, which was let go before a
    assert pages.share(b"b") is None and pages.share(b"a") == held[0]
    assert pages.num_used == 4 and held[0] not in taken
    pages.check()


def test_what_two_have_read_at_once_is_known_once() -> None:
    pages = Pages(4)
    first: list[int] = []
    second: list[int] = []
    pages.grow(first, 1)
    pages.grow(second, 1)
    pages.know(first[0], b"a")
    pages.know(second[0], b"a")
    assert pages.share(b"a") == first[0]
    pages.release(second)
    assert pages.num_idle == 0 and pages.num_available == 3
    pages.check()


def test_random_use_loses_nothing() -> None:
    rng, pages = random.Random(1), Pages(40)
    held: list[list[int]] = []
    for number in range(3000):
        choice = rng.random()
        if choice < 0.4:
            some: list[int] = []
            pages.grow(some, min(rng.randint(1, 6), pages.num_available))
            held.append(some)
        elif choice < 0.6 and held:
            owner = rng.choice(held)
            pages.grow(owner, min(1, pages.num_available))
        elif choice < 0.75 and held:
            for page in rng.choice(held):
                pages.know(page, bytes([rng.randrange(60)]))
        elif choice < 0.85:
            shared = pages.share(bytes([rng.randrange(60)]))
            if shared is not None:
                held.append([shared])
        elif held:
            pages.release(held.pop(rng.randrange(len(held))))
        if number % 10 == 0:
            pages.check()
    for some in held:
        pages.release(some)
    assert pages.num_used == 0 and pages.num_available == 40
    pages.check()


def test_digests_tell_all_that_came_before() -> None:
    ids = list(range(3 * PAGE + 5))
    first = digests(ids, [])
    assert len(first) == 3 and len(set(first)) == 3
    assert digests(ids, first[:1]) == first  # extended, not made anew
    changed = [7, *ids[1:]]
    assert not set(digests(changed, [])) & set(first)  # the first token is behind every page
    later = [*ids[:-37], *reversed(ids[-37:])]
    assert [a == b for a, b in zip(digests(later, []), first, strict=True)] == [True, True, False]


def test_keys_are_read_where_they_were_written() -> None:
    config = LlamaConfig(vocab_size=4, num_layers=2, dim=8, num_heads=2, num_kv_heads=2, ffn_dim=8)
    store = PagedKeys(config, 8, dtype=torch.float32)
    assert store.both.nbytes == (8 + 1) * PagedKeys.page_bytes(config, torch.float32)
    length = 2 * PAGE + 7
    generator = torch.Generator().manual_seed(0)
    for pages in ([2, 3, 4], [6, 0, 5]):
        keys, values = torch.randn(2, 2, 2, length, 4, generator=generator)
        for layer in range(2):
            for start, end in ((0, 40), (40, 41), (41, length)):
                both = torch.cat((keys[layer, :, start:end], values[layer, :, start:end]))
                store.write(layer, places_of(pages, start, end), both)
        for layer in range(2):
            span = span_of(pages, length)
            assert isinstance(span, slice) == (pages == [2, 3, 4])
            found = store.views(span)[layer] if isinstance(span, slice) else store.read(layer, span)
            assert torch.equal(found[0][0], keys[layer]) and torch.equal(found[1][0], values[layer])
