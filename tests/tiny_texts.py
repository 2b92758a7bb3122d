"""Tiny tokenizers of language models, and benchmarks of texts as published."""

import json
from pathlib import Path
from typing import Any

CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""A template that writes the beginning token itself, as Llama's does."""
BYTES = 256 + 5
"""Vocabulary of `byte_tokenizer`."""


def byte_tokenizer(
    folder: Path,
    *,
    bos: bool = False,
    eos: bool = False,
    pad: bool = True,
    chat: bool = False,
    length: int = 512,
) -> str:
    """A token for each byte, as GPT-2 writes them; spaces belong to the words behind them.

    Args:
        folder: made.
        bos: put a beginning token before every text, as Llama's tokenizer does.
        eos: put an end token behind every text, as few do.
        pad: have a padding token.
        chat: have a chat template.
        length: of the longest text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: k for k, token in enumerate([*special, *letters])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.add_special_tokens(special)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    if bos or eos:
        single = f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}"
        inner.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    named: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}
    named |= {"pad_token": "<pad>"} if pad else {}
    made = PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=length, **named)
    if chat:
        made.chat_template = CHAT
    made.save_pretrained(folder)
    return str(folder)


def prefix_tokenizer(folder: Path) -> str:
    """A token for each letter and a space before whatever is a text, as Llama 2's tokenizer."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(k) for k in range(33, 127)]
    vocabulary = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -1.0), ("\n", -1.0)]
    inner = Tokenizer(models.Unigram([*vocabulary, *((x, -1.0) for x in letters)], unk_id=0))
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    made = PreTrainedTokenizerFast(tokenizer_object=inner, **named)
    made.save_pretrained(folder)
    return str(folder)


def write_json(path: Path, content: Any) -> Path:
    """A JSON file; of a list to a name in ``.jsonl``, a line for each item."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in content]
    whole = json.dumps(content, ensure_ascii=False)
    path.write_text("".join(lines) if path.suffix == ".jsonl" else whole, encoding="utf-8")
    return path


def alpaca_rows(count: int = 12) -> list[dict[str, str]]:
    """Alpaca's objects; every third has an input."""
    return [
        {
            "instruction": f"Say the number {i}.",
            "input": f"in words {i}" if i % 3 == 0 else "",
            "output": f"It is {'one ' * (i % 4)}{i}.",
        }
        for i in range(count)
    ]
