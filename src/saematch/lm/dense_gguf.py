"""Conversion of a GGUF file to a dense model folder, which runs faster and can be served.

``python -m saematch.lm.dense_gguf FILE.gguf FOLDER``
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from saematch.core.files import replacing_folder


def write_dense(gguf: Path, folder: Path) -> None:
    """Write model and tokenizer of a GGUF file in bfloat16, in the format of transformers.

    Transformers reads the weights of a GGUF file but refuses to save the model, since it considers
    it quantised. So the weights are copied into a new model of the same configuration.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": gguf.name, "trust_remote_code": False}
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.bfloat16, **options)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = [type(read).__name__]
    dense = type(read)(config).to(torch.bfloat16)
    dense.load_state_dict(read.state_dict())
    dense.generation_config = read.generation_config
    with replacing_folder(folder) as part:
        dense.save_pretrained(part)
        AutoTokenizer.from_pretrained(gguf.parent, **options).save_pretrained(part)


if __name__ == "__main__":
    write_dense(Path(sys.argv[1]), Path(sys.argv[2]))
