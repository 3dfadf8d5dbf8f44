"""The files that let `transformers` load a model of ours. A language model is its Llama: the same weights, the same names."""

from __future__ import annotations

from typing import Any

from modelyard.models.config import GptConfig, HuggingFaceConfig, ModelSpec
from modelyard.task_kinds import Target
from modelyard.transform import TextTransform

CONFIG_FILE, TOKENIZER_CONFIG_FILE = "config.json", "tokenizer_config.json"


def config_json(spec: ModelSpec, end_token: int) -> dict[str, Any]:
    """`config.json` for ``AutoModelForCausalLM.from_pretrained``."""
    config = spec.model
    assert isinstance(config, GptConfig)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": spec.output_width,
        "hidden_size": config.width,
        "intermediate_size": config.num_hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.width // config.heads,
        "hidden_act": "silu",
        "max_position_embeddings": spec.input_width,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": end_token,
        "eos_token_id": end_token,
        "torch_dtype": "float32",
    }


def tokenizer_config_json(length: int, end: str) -> dict[str, Any]:
    """`tokenizer_config.json` for ``AutoTokenizer.from_pretrained``."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        "bos_token": end,
        "eos_token": end,
        "clean_up_tokenization_spaces": False,
    }


def transformer_config_json(spec: ModelSpec, target: Target) -> dict[str, Any]:
    """`config.json` for the Auto class that built the network."""
    from modelyard.models.transformer import class_name

    config = spec.network
    assert isinstance(config, HuggingFaceConfig)
    labels = {str(number): str(label) for number, label in enumerate(target.classes)}
    ends = {"id2label": labels, "label2id": {label: int(number) for number, label in labels.items()}} if labels else {}
    return {**config.config, **ends, "architectures": [class_name(config, spec.output_width)], "dtype": "float32"}


def text_tokenizer_json(transform: TextTransform) -> dict[str, Any]:
    """`tokenizer_config.json` for the tokenizer of a text transform."""
    pad = transform.reader.id_to_token(transform.pad)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": transform.max_length,
        "pad_token": pad,
        "clean_up_tokenization_spaces": False,
    }
