import pytest

from tests.conftest import ROOT
from vlm_agent.common.errors import UserError
from vlm_agent.policy.building import build_policy
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.inputs import sandbox
from vlm_agent.policy.inputs.prompts import PromptTemplate, load_template_source
from vlm_agent.world.actions import DEFAULT_WORDS
from vlm_agent.world.facts import Fact, all_facts

TASK = "Pick up the can."


def test_every_variable_is_rendered():
    source = (
        "{{ robot }}|{{ task }}|{{ image }}|{{ actions }}|{{ gripper }}|{{ last_action }}|"
        "{{ step }}|{{ words_left }}"
    )
    before, after = PromptTemplate(source, TASK, "Sawyer").render((1, 4, 7, 113))
    assert before == "Sawyer|Pick up the can.|"
    assert after == f"|{', '.join(DEFAULT_WORDS)}|closed|up|7|113"


def test_no_word_before_the_first():
    template = PromptTemplate("{{ image }}{{ gripper }} {{ last_action }}", TASK)
    assert template.render((0, 8, 0, 120)) == ("", "open none")


def test_actions_can_be_looped_over():
    template = PromptTemplate("{{ image }}{% for a in actions %}<{{ a }}>{% endfor %}", TASK)
    assert template.render((0, 8, 0, 1))[1] == "".join(f"<{w}>" for w in DEFAULT_WORDS)


def test_the_last_words_are_as_many_as_history_says():
    source = "{{ image }}{{ last_actions }}"
    for history, told in ((1, "up"), (3, "up, none, left")):
        facts = all_facts((), history=history)
        template = PromptTemplate(source, TASK, facts=facts)
        by_name = {"last_action": 4, "last_action_2": 8, "last_action_3": 2}
        values = [by_name.get(fact.name, 1) for fact in facts]
        assert template.render(values)[1] == told
        assert template.tells_the_same(PromptTemplate(source, TASK, facts=facts))
    longer = PromptTemplate(source, TASK, facts=all_facts((), history=2))
    assert not longer.tells_the_same(template)


@pytest.mark.parametrize("name", ["default", "minimal", "guided"])
def test_shipped_templates_are_valid_and_state_the_facts(name: str):
    source = load_template_source(f"prompts/{name}.jinja", [ROOT])
    template = PromptTemplate(source, TASK)
    for said, word in enumerate(DEFAULT_WORDS):
        text = "".join(template.render((1, said, 3, 9)))
        assert "closed" in text
        assert word in text


def test_shipped_templates_differ_in_length():
    lengths = [
        len(
            "".join(
                PromptTemplate((ROOT / f"prompts/{n}.jinja").read_text(), TASK).render((0, 8, 0, 9))
            )
        )
        for n in ("minimal", "default", "guided")
    ]
    assert lengths == sorted(lengths)
    assert lengths[0] * 5 < lengths[1]


BAD = {
    "no image": ("{{ task }}", "exactly once, .*found 0"),
    "two images": ("{{ image }}{{ image }}", "exactly once, .*found 2"),
    "image in a branch": (
        "{% if gripper == 'open' %}{{ image }}{% endif %}",
        "outside of conditions and loops; it stands in one",
    ),
    "image in a choice": ("{{ image if step else task }}", "outside of conditions"),
    "image in a loop": ("{% for i in range(2) %}{{ image }}{% endfor %}", "outside of conditions"),
    "image in a variable": ("{% set x = image %}{{ x }}{{ x }}", "outside of conditions"),
    "image twice at a later step": (
        "{{ image }}{% if step == 7 %}{{ image }}{% endif %}",
        "exactly once, .*found 2",
    ),
    "broken at a later step": ("{{ image }}{{ 1 / (step - 3) }}", "cannot be rendered: division"),
    "changed list": ("{{ image }}{{ actions.append('x') }}", r"append\(\.\.\.\) is not to be had"),
    "unknown variable": ("{{ image }}{{ griper }}", "unknown variable 'griper'.*'gripper'"),
    "syntax": ("{{ image }}\n{{ task ", "line 2"),
    "special token": ("{{ image }}<|im_end|>", r"special token '<\|im_end\|>'"),
    "sandbox": ("{{ image }}{{ task.__class__.__mro__ }}", "cannot be rendered.*unsafe"),
    "attribute": ("{{ image }}{{ task.nope }}", "cannot be rendered"),
    "include": ("{{ image }}{% include '/etc/passwd' %}", "cannot be rendered"),
    "division": ("{{ image }}{{ 1 / 0 }}", "cannot be rendered: division"),
    "endless": ("{{ image }}{% for i in range(10 ** 9) %}x{% endfor %}", "cannot be rendered"),
    "large product": ("{{ image }}{{ 'x' * 99999 * 99999 }}", r"\* makes more than 100000"),
    "large number": (
        "{{ image }}{{ 'x' | center(9999999) }}",
        "the filter 'center' is not to be had.*number 9999999 is above",
    ),
    "large power": ("{{ image }}{{ 9 ** 9999 }}", r"\*\* with a number above 16"),
    "wide format": ("{{ image }}{{ '%99999999d' % 1 }}", "makes more than 100000"),
    "long": ("{{ image }}{% for i in range(999) %}{{ 'x' * 999 }}{% endfor %}", "more than 100000"),
    "long loop": (
        "{{ image }}{% for i in range(99999) %}x{% endfor %}",
        "a range of 99999 numbers",
    ),
    "three loops": (
        "{{ image }}" + 3 * "{% for i in range(9) %}" + 3 * "{% endfor %}",
        "loops lie in each other more than 2 deep",
    ),
    "a text's method": ("{{ image }}{{ 'x'.ljust(99999) }}", r"ljust\(\.\.\.\) is not to be had"),
    "a format": ("{{ image }}{{ '{:9}'.format(1) }}", r"format\(\.\.\.\) is not to be had"),
    "joins": ("{{ image }}{{ 'xx' | join('yy') | join('zz') }}", "join of what was joined"),
    "a macro": (
        "{{ image }}{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        r"f\(\.\.\.\) is not to be had",
    ),
    "a namespace": ("{{ image }}{% set n = namespace(x='a') %}", r"namespace\(\.\.\.\) is not"),
    "broken at a late step": ("{{ image }}{{ 1 / (step - 777) }}", "cannot be rendered: division"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_templates_are_refused(case: str):
    source, problem = BAD[case]
    with pytest.raises(UserError, match=problem):
        PromptTemplate(source, TASK)


def test_a_template_without_end_is_left(monkeypatch):
    monkeypatch.setattr(sandbox, "TRIED_FOR_S", 1.0)
    loop = "{% for i in range(1000) %}"
    source = "{{ image }}" + 2 * loop + 2 * "{% endfor %}"
    with pytest.raises(UserError, match="the template is not rendered within 1 s"):
        PromptTemplate(source, TASK)
    PromptTemplate("{{ image }} {{ '%02d' % step }} {{ 7 % 3 }} {{ 2 ** 3 }} {{ '-' * 9 }}", TASK)


@pytest.mark.parametrize(
    "values",
    [
        {"task": "Pick <|image_pad|> up."},
        {"task": TASK, "robot": "<|im_start|>"},
        {"task": TASK, "words": (*DEFAULT_WORDS[:7], "<|im_end|>")},
        {"task": "Pick \x00 up."},
    ],
)
def test_special_tokens_cannot_come_in_through_a_variable(values: dict):
    with pytest.raises(UserError, match="special token|NUL"):
        PromptTemplate("{{ image }}{{ task }}", **values)


def test_a_missing_template_file_names_the_nearest():
    with pytest.raises(UserError, match=r"defualt.jinja'; did you mean 'prompts/default.jinja'"):
        load_template_source("prompts/defualt.jinja", [ROOT])


def test_a_template_is_the_same_where_only_untold_facts_differ():
    told, more = Fact("wet", "", values=("dry", "wet")), Fact("cold", "")
    source = "{{ image }} {{ task }} {{ wet }}"
    one = PromptTemplate(source, TASK, facts=(told,))
    assert one.tells_the_same(PromptTemplate(source, TASK, facts=(more, told)))
    renamed = Fact("wet", "", values=("dry", "soaked"))
    for other in (
        PromptTemplate(source, TASK, facts=(renamed,)),
        PromptTemplate(source + ".", TASK, facts=(told,)),
        PromptTemplate(source, "Another task.", facts=(told,)),
        PromptTemplate(source, TASK, facts=(told, Fact("instruction", "", values=("a", "b")))),
    ):
        assert not one.tells_the_same(other)


def test_the_task_is_the_sentence_that_the_instruction_says():
    asked = Fact("instruction", "", values=("Go left.", "Go right."))
    template = PromptTemplate("{{ image }}{{ task }}", "Go left.", facts=(asked,))
    assert [template.render((n,))[1] for n in (0, 1)] == ["Go left.", "Go right."]
    with pytest.raises(UserError, match="contains the special token '<|im_end|>'"):
        spoilt = Fact("instruction", "", values=("Go.", "Stop.<|im_end|>"))
        PromptTemplate("{{ image }}{{ task }}", "Go.", facts=(spoilt,))


def test_a_prompt_that_is_longer_than_what_the_model_reads_is_refused():
    source = "{{ image }} " + "many words " * 5000
    with pytest.raises(UserError, match=r"prompt_template: it makes \d+ tokens, .* at most 4096"):
        build_policy(ModelConfig(), PromptTemplate(source, "Pick up the can."), 0)
