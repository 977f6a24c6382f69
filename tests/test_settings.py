"""Settings from several places, and what the offline engine is given."""

import os

import pytest

import adakv_sglang
from adakv_sglang import AdaKVConfig, ConfigError
from adakv_sglang.config import CONFIG_VARIABLE
from adakv_sglang.settings import active_settings, merge_settings


@pytest.fixture
def environment(monkeypatch):
    """The variable, unset; what a test leaves in it is undone."""
    monkeypatch.setenv(CONFIG_VARIABLE, "")
    monkeypatch.delenv(CONFIG_VARIABLE)
    return monkeypatch


@pytest.mark.parametrize(
    ("layers", "merged"),
    [
        ([], {}),
        ([{"alpha": 0.1, "sinks": 2}, {"alpha": 0.3}], {"alpha": 0.3, "sinks": 2}),
        ([{"min_retained": 0.9}, {"sinks": 2}], {"min_retained": 0.9, "sinks": 2}),
        ([{"min_retained": 0.9}, {"keep_ratio": 0.3}], {"keep_ratio": 0.3}),
        ([{"keep_ratio": 0.3}, {"max_bound": 2.0}], {"max_bound": 2.0}),
        ([{"min_retained": 0.9}, {"max_bound": 2.0}, {"keep_ratio": 0.4}], {"keep_ratio": 0.4}),
        ([{"min_retained": 0.9}, {"min_retained": None}], {"min_retained": None}),
        ([{"keep_ratio": 0.3}, {"max_bound": None}], {"keep_ratio": 0.3, "max_bound": None}),
    ],
)
def test_later_layers_win_and_say_alone_how_much_is_kept(layers, merged):
    assert merge_settings(*layers) == merged
    AdaKVConfig.from_mapping(merge_settings(*layers))


def test_enable_selects_us_and_leaves_the_settings_for_child_processes(environment):
    environment.setenv(CONFIG_VARIABLE, '{"min_retained": 0.9, "sinks": 9}')
    selected = adakv_sglang.enable(keep_ratio=0.3, scorer="kvzip")
    assert selected == {"attention_backend": "adakv", "radix_cache_backend": "adakv"}
    assert AdaKVConfig.from_environment() == AdaKVConfig(keep_ratio=0.3, scorer="kvzip", sinks=9)


@pytest.mark.parametrize("given", [None, '{"sinks": 9}'])
def test_every_call_starts_from_what_the_operator_said(environment, given):
    if given:
        environment.setenv(CONFIG_VARIABLE, given)
    before = AdaKVConfig.from_environment()
    for settings in ({"keep_ratio": 0.3}, {"scorer": "kvzip"}, {"max_bound": 2.0}):
        adakv_sglang.enable(**settings)
        assert AdaKVConfig.from_environment() == AdaKVConfig(sinks=before.sinks, **settings)
    adakv_sglang.enable()
    assert AdaKVConfig.from_environment() == before


def test_a_variable_that_the_operator_sets_later_counts(environment):
    adakv_sglang.enable(scorer="kvzip")
    environment.setenv(CONFIG_VARIABLE, '{"sinks": 9}')
    adakv_sglang.enable(alpha=0.5)
    assert AdaKVConfig.from_environment() == AdaKVConfig(sinks=9, alpha=0.5)


@pytest.mark.parametrize(
    ("given", "settings", "says"),
    [
        ("", {"keep_ratio": 3}, "adakv_sglang.enable: keep_ratio: expected a number in (0, 1], got 3"),
        ("", {"keepratio": 1}, "adakv_sglang.enable: unknown keepratio; allowed: keep_ratio"),
        (
            "",
            {"keep_ratio": 1, "max_bound": 2},
            "adakv_sglang.enable: keep_ratio, max_bound: expected one of them, got both",
        ),
        ("{", {"keep_ratio": 1}, "ADAKV_SGLANG_CONFIG: not valid JSON"),
        ('{"alpha": 7}', {"alpha": 0}, "ADAKV_SGLANG_CONFIG: alpha: expected a number in [0, 1], got 7"),
    ],
)
def test_enable_refuses_bad_settings_and_changes_nothing(environment, given, settings, says):
    environment.setenv(CONFIG_VARIABLE, given)
    with pytest.raises(ConfigError) as refusal:
        adakv_sglang.enable(**settings)
    assert str(refusal.value).startswith(says)
    assert os.environ[CONFIG_VARIABLE] == given


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        (
            {},
            {
                "keep_ratio": 0.5,
                "scorer": "keydiff_weighted",
                "prepared_scorer": "kvzip_weighted",
                "allocator": "cross-layer",
            },
        ),
        (
            {"keep_ratio": 0.3, "sinks": 9, "alpha": 0.2},
            {
                "keep_ratio": 0.3,
                "scorer": "keydiff_weighted",
                "prepared_scorer": "kvzip_weighted",
                "allocator": "cross-layer",
                "sinks": 9,
            },
        ),
        (
            {"max_bound": 2, "allocator": "adakv"},
            {
                "scorer": "keydiff_weighted",
                "prepared_scorer": "kvzip_weighted",
                "allocator": "adakv",
                "max_bound": 2.0,
            },
        ),
    ],
)
def test_active_settings_are_the_main_ones_and_all_that_differ(config, shown):
    assert active_settings(AdaKVConfig(**config)) == shown
