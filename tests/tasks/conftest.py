"""A folder of tasks of three kinds over a dozen documents, and models whose mechanisms are not neutral."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from ratrain.data.tokenizer import load_tokenizer
from ratrain.model.build import build

WORDS = ["king", "queen", "duke", "lord", "love", "night", "death", "sword", "crown", "heart", "blood", "grace"]
LONG = "The {0}, my lord, is come again by night; and all the house doth know the {0}, and love him not, nor fear.\n"
DOCUMENTS = [
    {
        "q": f"The {word} is",
        "choices": [f"my {word}", "xq zzz", f"of the {word}"],
        "gold": at % 3,
        "text": f"O {word}, O {word}!\n" if at % 2 else LONG.format(word),
        "answer": word,
    }
    for at, word in enumerate(WORDS)
]
_DATA = """\
dataset_path: json
dataset_kwargs:
  data_files:
    test: documents.jsonl
test_split: test
metadata:
  version: 1.0
"""
CHOICE = f"""\
task: word_choice
output_type: multiple_choice
{_DATA}doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
TEXT = f"""\
task: whole_text
output_type: loglikelihood_rolling
{_DATA}doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
"""
DRAWN = f"""\
task: next_words
output_type: generate_until
{_DATA}doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 4
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


def write_tasks(folder, documents=DOCUMENTS):
    folder.mkdir(exist_ok=True)
    (folder / "documents.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    for name, text in {"choice": CHOICE, "text": TEXT, "drawn": DRAWN}.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_tasks(tmp_path / "my_tasks")


@pytest.fixture(scope="session")
def shaken(tiny):
    """An untrained model whose weights were all moved, with its tokenizer."""

    def shaken(name: str):
        manifest = tiny(name)
        model = build(manifest, device=torch.device("cpu")).eval()
        generator = torch.Generator().manual_seed(3)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        return SimpleNamespace(model=model, tokenizer=load_tokenizer(manifest.data.tokenizer))

    return shaken
