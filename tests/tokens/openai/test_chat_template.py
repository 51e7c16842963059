"""Chats to texts: the plain form, templates as transformers has them, and templates that mean harm."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.tokens.openai import chat, template_process
from mlperf_jax.tokens.openai.refusals import Refusal

ROOT = Path(__file__).parents[3]
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi {{ 7*7 }}"}]
MARKED = (
    "{%- if messages[0]['role'] != 'system' -%}{{ raise_exception('no system') }}{%- endif -%}\n"
    "{{ bos_token }}\n"
    "{% for message in messages %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SAID = (
    "<s>\n<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi {{ 7*7 }}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
DEADLY = {
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}": "more than 0.5 s",
    "{% set a = namespace(b='aa') %}{% for _ in range(99) %}{% set a.b = a.b ~ a.b %}{% endfor %}": "MemoryError|or too much memory",
    "{% for a in range(99999) %}{{ 'a' * 99 }}{% endfor %}": "9,899,901 characters",
}
HARMFUL = {
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "unsafe",
    "{{ cycler.__init__.__globals__.os.system('true') }}": "unsafe",
    "{{ '{0.__class__.__mro__}'.format(messages) }}": "unsafe",
    "{{ messages.append(1) }}": "unsafe",
    "{% include '/etc/passwd' %}": "no loader",
    "{% for a in %}": "Expected an expression",
    "{{ raise_exception('roles must alternate') }}": "roles must alternate",
}


def test_without_a_template_messages_are_lines():
    assert chat.plain(ASKED) == "system: Be brief.\nuser: Hi {{ 7*7 }}\nassistant:"


def test_a_template_is_filled_in_and_again():
    template = chat.Template(MARKED, {"bos_token": "<s>"})
    with contextlib.closing(template):
        assert [template.fill_in(ASKED) for _ in range(2)] == [SAID] * 2
        with pytest.raises(Refusal, match="no system"):
            template.fill_in(ASKED[1:])
        assert template.fill_in(ASKED) == SAID


def test_templates_that_take_too_much_are_refused_and_the_next_is_not():
    for source, why in DEADLY.items():
        template = chat.Template(source, {})
        with contextlib.closing(template):
            with pytest.raises(Refusal, match=why) as refused:
                template.fill_in(ASKED)
            assert refused.value.status == 400
            template.close()
            template._source = "{{ messages[0]['content'] }}"
            assert template.fill_in(ASKED) == "Be brief."


def test_a_template_is_ended_where_the_signal_for_it_is_ignored():
    """As libtpu leaves it. In a process of its own: Python knows nothing of what a library has set, and would not give that back."""
    source, why = next(iter(DEADLY.items()))
    script = (
        "import signal\n"
        "from tests.tokens.openai.test_chat_template import *\n"
        "signal.signal(signal.SIGPROF, signal.SIG_IGN)\n"
        "template = chat.Template(sys.argv[1], {})\n"
        "with contextlib.closing(template), pytest.raises(Refusal, match=sys.argv[2]): template.fill_in(ASKED)"
    )
    command = [sys.executable, "-c", script, source, why]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(("source", "why"), HARMFUL.items())
def test_templates_that_mean_harm_do_none(source, why):
    with pytest.raises((jinja2.TemplateError, TypeError), match=why):
        template_process.environment().from_string(source).render(messages=list(ASKED))


def test_templates_are_found_beside_the_tokenizer(tmp_path):
    tokenizer = tmp_path / "tokenizer.json"
    config, own = tmp_path / "tokenizer_config.json", tmp_path / "chat_template.jinja"
    assert chat.find_template(tokenizer) is None
    config.write_text(json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "</s>"}))
    assert chat.find_template(tokenizer) is None
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    named = [{"name": "tool_use", "template": "b"}, {"name": "default", "template": "a"}]
    for written in ("a", named):
        config.write_text(json.dumps({"chat_template": written} | special))
        assert chat.find_template(tokenizer) == ("a", special)
    own.write_text("c")
    assert chat.find_template(tokenizer) == ("c", special)
    own.write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"chat_template\.jinja cannot be read"):
        chat.find_template(tokenizer)
    own.write_text("c" * (1 << 21))
    with pytest.raises(UserError, match="larger than"):
        chat.find_template(tokenizer)
    config.write_text("[" * 100_000)
    with pytest.raises(UserError, match="no JSON"):
        chat.find_template(tokenizer)
