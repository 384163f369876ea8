"""What a run file's `openai_args` make of vLLM's own server."""

from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

pytestmark = pytest.mark.slow  # importing vLLM takes more than five seconds


def arguments(**options: Any) -> Any:
    """Those of a replica whose engine is asked for its config alone."""
    from vllm.config import StructuredOutputsConfig

    from services.rollout import openai_server

    config = SimpleNamespace(
        model_config=SimpleNamespace(model="/models/m"), structured_outputs_config=StructuredOutputsConfig()
    )
    return openai_server._arguments(SimpleNamespace(llm=SimpleNamespace(vllm_config=config)), "m", options)


@pytest.mark.parametrize("keys", ["secret", ["other", "secret"]])
def test_a_key_is_a_key_and_none_of_its_letters_is(keys: str | list[str]) -> None:
    from services.rollout.openai_server import build_app

    client = TestClient(build_app(arguments(api_key=keys), (), None))
    answers = {key: client.get("/v1/nothing", headers={"Authorization": f"Bearer {key}"}) for key in ("secret", "s", "")}
    assert {key: answer.status_code for key, answer in answers.items()} == {
        "secret": HTTPStatus.NOT_FOUND, "s": HTTPStatus.UNAUTHORIZED, "": HTTPStatus.UNAUTHORIZED,
    }  # fmt: skip


PARSER = """
from vllm.tool_parsers.abstract_tool_parser import ToolParser, ToolParserManager

@ToolParserManager.register_module("mine")
class Mine(ToolParser):
    pass
"""


def test_a_plugin_s_tool_parser_is_known_by_its_name(tmp_path: Path) -> None:
    from vllm.tool_parsers.abstract_tool_parser import ToolParserManager

    (tmp_path / "parser_of_this_test.py").write_text(PARSER)
    arguments(tool_parser_plugin=str(tmp_path / "parser_of_this_test.py"), tool_call_parser="mine")
    assert ToolParserManager.get_tool_parser("mine").__name__ == "Mine"
