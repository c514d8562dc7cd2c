"""BERT against transformers, random weights, float32, every head in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kiban import zoo
from kiban.families.bert import Bert, BertConfig, mean_pool

TOLERANCE = 1e-4
CLASSES = {
    None: "BertModel",
    "sequence_classification": "BertForSequenceClassification",
    "token_classification": "BertForTokenClassification",
    "question_answering": "BertForQuestionAnswering",
    "masked_lm": "BertForMaskedLM",
    "next_sentence": "BertForNextSentencePrediction",
    "pretraining": "BertForPreTraining",
}
LABELS = ("良い", "悪い", "普通")


def hf(name: str, labels: int = len(LABELS)) -> Any:
    """transformers' class with random weights."""
    import transformers

    torch.manual_seed(0)
    values = {"vocab_size": 101, "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
    config = transformers.BertConfig(
        **values, intermediate_size=48, max_position_embeddings=40, initializer_range=0.2, num_labels=labels
    )
    config.id2label = dict(enumerate(LABELS[:labels]))
    return getattr(transformers, name)(config).eval()


def batch() -> dict[str, Tensor]:
    """Two rows, the second padded on the right, with two segments."""
    tokens = torch.randint(1, 101, (2, 17), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 17, dtype=torch.bool)
    mask[1, 11:] = False
    segments = (torch.arange(17) > 6).long().expand(2, 17).contiguous()
    return {"tokens": tokens, "segments": segments, "mask": mask}


def answers(head: str | None, ours: torch.nn.Module, theirs: Any) -> list[tuple[Tensor, Tensor]]:
    """Pairs of outputs that should be equal."""
    inputs = batch()
    with torch.no_grad():
        mine = ours(**inputs)
        out = theirs(
            input_ids=inputs["tokens"], token_type_ids=inputs["segments"], attention_mask=inputs["mask"].long()
        )
    real = inputs["mask"][..., None]
    if head is None:
        assert isinstance(ours, Bert)
        return [(mine * real, out.last_hidden_state * real), (ours.pooled(mine), out.pooler_output)]
    if head == "question_answering":
        return [(mine * real, torch.stack((out.start_logits, out.end_logits), -1) * real)]
    if head == "pretraining":
        return [(mine[0] * real, out.prediction_logits * real), (mine[1], out.seq_relationship_logits)]
    if head in ("masked_lm", "token_classification"):
        return [(mine * real, out.logits * real)]
    return [(mine, out.logits)]


@pytest.mark.parametrize("head", CLASSES, ids=str)
def test_a_folder_of_transformers_gives_the_same_outputs_here(head: str | None, tmp_path: Path) -> None:
    theirs = hf(CLASSES[head], 2 if head == "question_answering" else 3)
    theirs.save_pretrained(tmp_path)
    loaded = zoo.load(tmp_path, head=head)
    assert loaded.head == head
    for mine, expected in answers(head, loaded.module, theirs):
        assert (mine - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("head", CLASSES, ids=str)
def test_a_folder_of_ours_gives_the_same_outputs_in_transformers(head: str | None, tmp_path: Path) -> None:
    import transformers

    config = BertConfig(vocab_size=101, num_layers=2, dim=32, num_heads=4, ffn_dim=48, max_seq_len=40)
    module: torch.nn.Module = Bert(config)
    if head is not None:
        module = zoo.families()["bert"].heads[head].build(module, len(LABELS))
    zoo.initialise(module, torch.Generator().manual_seed(4))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    labels = LABELS if head in ("sequence_classification", "token_classification") else ()
    loaded = zoo.Loaded(zoo.families()["bert"], config, module.eval(), None, head, labels, "bert", None)
    zoo.save(loaded, tmp_path / "model")
    theirs, told = getattr(transformers, CLASSES[head]).from_pretrained(
        tmp_path / "model", dtype=torch.float32, output_loading_info=True
    )
    assert not told["missing_keys"]
    assert all("pooler" in name for name in told["unexpected_keys"])  # transformers leaves it out under some heads
    if labels:
        assert tuple(theirs.config.id2label.values()) == LABELS
    for mine, expected in answers(head, module, theirs.eval()):
        assert (mine - expected).abs().max() < TOLERANCE


def test_mean_pool_leaves_padding_out() -> None:
    hidden = torch.tensor([[[3.0, 0.0], [1.0, 4.0], [100.0, 100.0]]])
    mask = torch.tensor([[True, True, False]])
    assert torch.allclose(mean_pool(hidden, mask, normalise=False), torch.tensor([[2.0, 2.0]]))
    assert torch.allclose(mean_pool(hidden, mask), torch.tensor([[0.5**0.5, 0.5**0.5]]))


@pytest.mark.weights
def test_minilm_embeds_as_sentence_transformers_does(minilm_folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    import kiban

    texts = ["Foundation models.", "a", "基盤モデルを選ぶ", "mixed 日本語 and English " * 40, ""]
    ours = torch.as_tensor(kiban.load(minilm_folder).embed(texts))
    theirs = torch.as_tensor(SentenceTransformer(str(minilm_folder), device="cpu").encode(texts))
    assert (ours - theirs).abs().max() < 1e-5
