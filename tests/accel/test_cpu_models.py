"""CPU models: the text of --cpu, what of an engine's features a model shows, and what tells vCPUs apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmkit.accel import cpuid
from kvmkit.accel.features import FEATURES, WORDS
from kvmkit.errors import BadInput

AMD = (0x68747541, 0x444D4163, 0x69746E65)
INTEL = (0x756E6547, 0x6C65746E, 0x49656E69)


def everything(vendor=AMD) -> cpuid.Table:
    """What a host with every feature would support."""
    table: cpuid.Table = {(0, None): (0x1F, *vendor), (0x80000000, None): (0x80000021, *vendor)}
    table[(1, None)] = (0xA10F11, 0x02020800, 0, 0)
    for leaf, subleaf, register in WORDS:
        registers = list(table.get((leaf, subleaf), (0, 0, 0, 0)))
        registers[register] = 0xFFFFFFFF
        table[(leaf, subleaf)] = tuple(registers)
    table[(4, 0)] = (0x121, 0x1C0003F, 0x3F, 0)
    table[(4, 3)] = (0x163, 0x3C0003F, 0x7FFF, 1)
    table[(0xB, 0)] = (0, 0, 0, 0)
    table[(0x8000001D, 3)] = (0x163, 0x3C0003F, 0x7FFF, 1)
    table[(0x40000000, None)] = (0x40000001, 0x4B4D564B, 0x564B4D56, 0x4D)
    return table


@pytest.mark.parametrize("name", cpuid.MODELS)
def test_each_model_can_be_named(name):
    assert cpuid.parse(name) == cpuid.Selection(name)


def test_features_are_added_and_taken_away():
    assert cpuid.parse("host,-avx,+x2apic") == cpuid.Selection("host", ("x2apic",), ("avx",))


def test_the_last_word_on_a_feature_counts():
    assert cpuid.parse("host,-avx,+avx") == cpuid.Selection("host", ("avx",), ())


@pytest.mark.parametrize(
    ("written", "meant"), [("pni", "sse3"), ("sse4_2", "sse4.2"), ("lahf_lm", "lahf-lm"), ("NX", "nx")]
)
def test_linux_names_are_known(written, meant):
    assert cpuid.parse(f"host,-{written}").remove == (meant,)


@pytest.mark.parametrize(
    "text", ["", "pentium", "Host", "host,", "host,avx", "host,+", "host,+nothing", "host,*avx", ",+avx"]
)
def test_what_is_no_model_is_refused_in_one_line(text):
    with pytest.raises(BadInput) as caught:
        cpuid.parse(text)
    assert "\n" not in str(caught.value)


def test_an_unknown_model_is_told_what_there_is():
    with pytest.raises(BadInput, match=r"host, max, x86-64-v1 to -v4"):
        cpuid.parse("pentium")


def test_a_misspelt_feature_gets_a_suggestion():
    with pytest.raises(BadInput, match="avx2"):
        cpuid.parse("host,+avx22")


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text):
    try:
        selection = cpuid.parse(text)
    except BadInput:
        return
    assert selection.model in cpuid.MODELS


@pytest.mark.parametrize("vendor", [AMD, INTEL])
def test_baseline_has_exactly_its_features(vendor):
    table = cpuid.select("x86-64-v2", everything(vendor))
    model = cpuid.MODELS["x86-64-v2"]
    assert isinstance(model, cpuid.Baseline)
    shown = {name for name in FEATURES if cpuid.has(table, name)}
    assert shown == set(model.features.split())


def test_baseline_is_the_same_on_a_greater_host():
    small = everything()
    small[(7, 0)] = (0, 0, 0, 0)
    small[(1, None)] = (0x800F12, 0x04040800, small[(1, None)][2] & ~(1 << 28), small[(1, None)][3])
    assert cpuid.select("x86-64-v2", small) == cpuid.select("x86-64-v2", everything())


def test_features_that_the_engine_lacks_are_left_out_and_told():
    supported = everything()
    eax, ebx, ecx, edx = supported[(1, None)]
    supported[(1, None)] = (eax, ebx, ecx & ~(1 << 23), edx)
    assert not cpuid.has(cpuid.select("x86-64-v2", supported), "popcnt")
    assert cpuid.missing("x86-64-v2", supported) == ["popcnt"]


def test_adding_what_the_engine_lacks_is_refused():
    supported = everything()
    supported[(7, 0)] = (0, 0, 0, 0)
    with pytest.raises(BadInput, match="avx2"):
        cpuid.select("host,+avx2", supported)


def test_taking_away_works_on_every_model():
    for model in cpuid.MODELS:
        assert not cpuid.has(cpuid.select(f"{model},-sse4.2", everything()), "sse4.2")


def test_a_feature_above_the_baseline_can_be_added():
    assert cpuid.has(cpuid.select("x86-64-v2,+avx2", everything()), "avx2")


def test_amd_repeats_bits_and_intel_does_not():
    amd = cpuid.select("x86-64-v2,-mmx", everything(AMD))
    assert amd[(0x80000001, None)][3] & 0x0183F3FF == amd[(1, None)][3] & 0x0183F3FF
    intel = cpuid.select("x86-64-v2", everything(INTEL))
    assert intel[(0x80000001, None)][3] & 0x0183F3FF == 0


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 64, 255])
@pytest.mark.parametrize("vendor", [AMD, INTEL])
def test_each_vcpu_is_a_core_of_one_socket(vendor, cpus):
    shared = cpuid.select("host", everything(vendor))
    for index in {0, 1, cpus - 1} & set(range(cpus)):
        own = cpuid.for_vcpu(shared, index, cpus)
        ebx = own[(1, None)][1]
        assert (ebx >> 24, ebx >> 16 & 0xFF, ebx & 0xFFFF) == (index, cpus, 0x0800)
        assert own[(1, None)][3] >> 28 & 1 == (cpus > 1)
        width = own[(0xB, 1)][0]
        assert cpus <= 1 << width < max(2 * cpus, 2)
        assert own[(0xB, 0)] == (0, 1, 0x100, index)
        assert own[(0xB, 1)] == (width, cpus, 0x201, index)
        assert own[(0xB, 2)][:2] == (0, 0)
        assert own[(4, 0)][0] >> 14 & 0xFFF == 0
        assert own[(4, 3)][0] >> 14 & 0xFFF == cpus - 1
        assert own[(4, 3)][0] >> 26 == min(cpus - 1, 63)
        if vendor == AMD:
            assert own[(0x80000008, None)][2] & 0xFF == cpus - 1
            assert own[(0x80000008, None)][2] >> 12 & 0xF == width
            assert own[(0x8000001E, None)][0] == index


def test_vcpus_do_not_change_the_shared_table():
    shared = cpuid.select("host", everything())
    before = dict(shared)
    cpuid.for_vcpu(shared, 1, 2)
    assert shared == before


@pytest.mark.parametrize("deadline", [False, True])
def test_tsc_deadline_follows_the_capability(deadline):
    assert cpuid.has(cpuid.with_engine(everything(), deadline=deadline), "tsc-deadline") == deadline


def test_hypervisor_bit_is_added_where_kvm_leaves_it_out():
    supported = everything()
    eax, ebx, ecx, edx = supported[(1, None)]
    supported[(1, None)] = (eax, ebx, ecx & 0x7FFFFFFF, edx)
    assert cpuid.has(cpuid.with_engine(supported, deadline=True), "hypervisor")


def test_each_feature_has_one_bit():
    assert len(set(FEATURES.values())) == len(FEATURES)
    for (leaf, _, register), names in WORDS.items():
        assert len(names.split()) <= 32, (hex(leaf), register)
