"""LR and HR of a data set, put together by name alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_assets.sources.pairing import match

_PATHS = st.sets(
    st.builds(
        "{}{}{}{}".format,
        st.sampled_from(["", "a/", "b/"]),
        st.sampled_from(["1", "2", "X4", "Img"]),
        st.sampled_from(["", "x4", "_LR", "_HR", "-x2"]),
        st.sampled_from([".png", ".JPG"]),
    ),
    max_size=8,
)


@pytest.mark.parametrize(
    ("hr", "lr"),
    [
        ("0801.png", "0801x4.png"),
        ("0801.png", "X4/0801x4.png"),
        ("DIV2K_valid_HR/0801.png", "DIV2K_valid_LR_bicubic/X4/0801x4.png"),
        ("img_001_SRF_4_HR.png", "img_001_SRF_4_LR.png"),
        ("baby_GT.bmp", "baby.png"),
        ("a/Same.png", "a/same.jpg"),
        ("butterfly.png", "butterflyx4m.png"),
        ("woman.png", "woman_LRBI_x4.png"),
        ("x4.png", "x4.png"),
    ],
)
def test_names_that_data_sets_use(hr: str, lr: str) -> None:
    found = match([hr, "other.png"], [lr])
    assert found.pairs == {hr: lr}
    assert found.hr_problems == {"other.png": "no LR is named like other.png"}
    assert not found.lr_problems


def test_folders_tell_equal_names_apart() -> None:
    found = match(["a/1.png", "b/1.png"], ["b/1x4.png", "a/1x4.png"])
    assert found.pairs == {"a/1.png": "a/1x4.png", "b/1.png": "b/1x4.png"}


def test_what_only_seems_to_be_a_mark_is_part_of_the_name() -> None:
    for names in (["max2.png", "max3.png"], ["rela.png", "relax2.png"], ["bo.png", "box2.png"]):
        assert match(names, names).pairs == {name: name for name in names}


def test_names_are_equal_however_their_letters_are_written() -> None:
    assert match(["caf\u00e9.png"], ["cafe\u0301x4.png"]).pairs


def test_two_of_one_name_are_named_with_the_mend() -> None:
    found = match(["1.png", "1_HR.png"], ["1x4.png"])
    said = "HR 1.png, 1_HR.png and LR 1x4.png have one name: rename them so that each HR has one LR"
    assert found.hr_problems == {"1.png": said, "1_HR.png": said}
    assert found.lr_problems == {"1x4.png": said}


@given(_PATHS, _PATHS)
def test_every_file_is_paired_once_or_has_a_reason(hr: set[str], lr: set[str]) -> None:
    found = match(hr, lr)
    assert set(found.pairs) | set(found.hr_problems) == hr
    assert not set(found.pairs) & set(found.hr_problems)
    partners = list(found.pairs.values())
    assert len(partners) == len(set(partners))
    assert set(partners) | set(found.lr_problems) == lr
    assert not set(partners) & set(found.lr_problems)
