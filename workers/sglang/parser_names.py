"""Names of tool-call and reasoning parsers that Dynamo's users know, and what SGLang calls them."""

from __future__ import annotations

TOOL_CALL_PARSERS = {
    "llama3_json": "llama3",
    "harmony": "gpt-oss",
    "deepseek_v3": "deepseekv3",
    "deepseek_v3_1": "deepseekv31",
    "deepseek_v3_2": "deepseekv32",
    "deepseek_v4": "deepseekv4",
    "deepseek-v4": "deepseekv4",
    "minimax_m2": "minimax-m2",
    "minimax_m3": "minimax-m3",
    "nemotron_nano": "qwen3_coder",
    "gemma-4": "gemma4",
}
REASONING_PARSERS = {
    "deepseek_r1": "deepseek-r1",
    "deepseek_v4": "deepseek-v4",
    "gpt_oss": "gpt-oss",
    "granite": "granite_thinking_parser",
    "minimax_append_think": "minimax-append-think",
    "nemotron3": "nemotron_3",
    "nemotron_v3": "nemotron_3",
}
