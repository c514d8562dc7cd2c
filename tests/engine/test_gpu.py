"""The engine on a CUDA device, run by hand: `pytest -m gpu tests/engine`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from kiban import zoo
from kiban.engine.decoder import DecoderPlan
from kiban.engine.graphs import Graphs
from kiban.engine.pages import PagedKeys, Part
from kiban.engine.scheduler import Scheduler
from kiban.errors import ConfigError
from kiban.generate.sampling import Sampling
from kiban.generate.text import device_of, generate
from kiban.inputs.tokenizer import Tokenizer
from layouts import LAYOUTS, filled
from listener import Listener, small_llama

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LENGTHS = (1, 5, 17, 31, 32, 33, 64, 97, 150, 200, 257, 300)


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """Products in float32 as they are, not in 19 bits."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    yield
    for switch, value in zip(switches, before, strict=True):
        switch.allow_tf32 = value


def loaded_of(**changes: Any) -> zoo.Loaded:
    module = small_llama(**changes).to("cuda")
    return zoo.Loaded(zoo.families()["llama"], module.config, module, None, None, (), "small", None)


def plan_of(**changes: Any) -> DecoderPlan:
    return DecoderPlan(loaded_of(**changes), weights="fp32")


def prompts_of(lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]


@torch.inference_mode()
@pytest.mark.parametrize("changes", [{}, {"sliding_window": 40}, {"tied": True}, {"qkv_bias": True}], ids=str)
def test_logits_equal_the_models(changes: dict[str, Any]) -> None:
    loaded = loaded_of(**changes)
    plan = DecoderPlan(loaded, weights="fp32")
    tokens = torch.randint(0, 256, (3, 60), generator=torch.Generator().manual_seed(3)).cuda()
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, :7] = mask[2, :2] = False
    wanted = loaded.module(tokens, mask=mask)
    bar = 1e-4 * max(1.0, float(wanted.abs().max()))
    assert device_of(plan).type == "cuda"
    assert (plan(tokens) - loaded.module(tokens)).abs().max() < bar
    cache, parts = plan.make_cache(3, 60), []
    for start, end in ((0, 30), (30, 31), (31, 60)):
        parts.append(plan(tokens[:, start:end], mask=mask[:, :end], cache=cache))
    assert ((torch.cat(parts, dim=1) - wanted).abs() * mask[..., None]).max() < bar


@torch.inference_mode()
def test_bf16_stays_close_and_is_what_auto_takes() -> None:
    loaded = loaded_of()
    tokens = torch.randint(0, 256, (3, 60), generator=torch.Generator().manual_seed(3)).cuda()
    truth = loaded.module(tokens)
    plan = DecoderPlan(loaded, weights="auto")
    assert plan.weights == ("bf16" if torch.cuda.is_bf16_supported() else "fp32")
    assert plan.keys_dtype == plan.dtype and plan.make_cache(1, 1).keys.dtype == plan.dtype
    assert float((plan(tokens) - truth).var() / truth.var()) < 0.02
    with pytest.raises(ConfigError, match="CPU"):
        DecoderPlan(loaded, weights="int8")


def test_a_plan_shares_what_it_need_not_change() -> None:
    module: Any = loaded_of(tied=True)
    module.module.to(torch.bfloat16)
    plan = DecoderPlan(module, weights="bf16")
    block: Any = next(iter(module.module.blocks))
    weights = [plan.layers[0].out, plan.layers[0].down, plan.head]
    sources = [block.attn.o.weight, block.ffn.down.weight, module.module.embed.weight]
    assert [part.weight.data_ptr() for part in weights] == [t.data_ptr() for t in sources]


@pytest.mark.parametrize("paged", [False, True], ids=["gathered", "paged"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("changes", [{}, {"sliding_window": 40}, {"num_kv_heads": 6}], ids=["plain", "window", "mha"])
def test_graphs_give_the_logits_of_the_plan(changes: dict[str, Any], layout: str, dtype: Any, paged: bool) -> None:
    plan = DecoderPlan(loaded_of(**changes), weights=dtype)
    parts, keys = filled(plan, LAYOUTS[layout])
    wanted = plan.step(parts, keys)
    parts, keys = filled(plan, LAYOUTS[layout])
    graphs = Graphs(plan, keys, paged=paged)
    for _ in range(3):  # captured, then run again; nothing of a step is left in the graph
        found = graphs(parts)
        assert found is not None and found.shape == wanted.shape
        bar = 1e-4 if dtype == "fp32" else 0.1
        assert (found - wanted).abs().max() < bar * max(1.0, float(wanted.abs().max()))
    assert len(graphs._captured) == 1 and graphs.paged == paged


@pytest.mark.parametrize("paged", [False, True], ids=["gathered", "paged"])
def test_one_graph_serves_other_answers_and_graphs_share_their_memory(paged: bool) -> None:
    """Steps of several buckets in turn, each beside the plan's own step, while the answers grow over their edges."""
    plan = plan_of()
    rows = prompts_of((250, 30, 100, 380))
    keys, truth = (PagedKeys(plan.config, 60, dtype=torch.float32, device="cuda") for _ in range(2))
    pages = [list(range(48, 60)), [7, 3, 9], [30, 2, 31, 1, 0], [*range(10, 21), 40]]
    for store in (keys, truth):
        for ids, held in zip(rows, pages, strict=True):
            plan.step([Part(ids[:20], 0, held)], store)
    graphs = Graphs(plan, keys, paged=paged)
    for at in range(20, 380):
        parts = [Part([ids[at]], at, held) for ids, held in zip(rows, pages, strict=True) if at < len(ids)]
        found, wanted = graphs(parts), plan.step(parts, truth)
        assert found is not None
        assert (found - wanted).abs().max() < 1e-4 * max(1.0, float(wanted.abs().max())), at
    assert len(graphs._captured) >= 4 and graphs.paged == paged


@pytest.mark.parametrize("speculate", [False, True])
def test_answers_of_the_scheduler_are_those_of_the_module(byte_tokenizer: Tokenizer, speculate: bool) -> None:
    loaded = loaded_of()
    prompts = prompts_of()
    sampling = Sampling(max_new_tokens=40)
    wanted = [generate(loaded.module, byte_tokenizer, [prompt], sampling)[0] for prompt in prompts]
    plan = DecoderPlan(loaded, weights="fp32")
    engine = Scheduler(plan, byte_tokenizer, max_running=7, speculate=speculate)
    try:
        for _ in range(2):  # the second time prompts are taken over
            listeners = [Listener() for _ in prompts]
            for listener, prompt in zip(listeners, prompts, strict=True):
                engine.submit(listener.request(prompt, max_new_tokens=40))
            assert [listener.wait().ids for listener in listeners] == [answer.ids for answer in wanted]
        fast = getattr(engine._batch, "fast", None)
        assert isinstance(fast, Graphs) and fast._captured and fast.paged
    finally:
        engine.close(drain=0)
    engine._pages.check()


def test_a_cancelled_answer_ends_and_the_others_go_on(byte_tokenizer: Tokenizer) -> None:
    loaded = loaded_of(max_seq_len=4096)
    plan = DecoderPlan(loaded, weights="fp32")
    byte_tokenizer = copy.copy(byte_tokenizer)
    byte_tokenizer.eos_ids = frozenset()
    engine = Scheduler(plan, byte_tokenizer, max_running=4)
    try:
        endless, short = Listener(), Listener()
        ticket = engine.submit(endless.request([1, 2, 3], max_new_tokens=4000))
        engine.submit(short.request([4, 5], max_new_tokens=30))
        assert short.wait().finish == "length"
        ticket.cancel()
        assert endless.wait().finish == "cancelled"
        again = Listener()
        engine.submit(again.request([4, 5], max_new_tokens=30))
        assert again.wait().ids == short.ids
    finally:
        engine.close(drain=0)
    assert engine.load().pages_used == 0


def test_sampled_answers_come_from_the_gpu_too(byte_tokenizer: Tokenizer) -> None:
    plan = plan_of()
    engine = Scheduler(plan, byte_tokenizer)
    settings: dict[str, Any] = {"max_new_tokens": 20, "temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.1}
    try:
        listeners = [Listener() for _ in range(3)]
        for listener in listeners:
            engine.submit(listener.request([5, 6, 7], **settings, seed=3, num_top=2))
        assert len({tuple(listener.wait().ids) for listener in listeners}) == 1
    finally:
        engine.close(drain=0)
