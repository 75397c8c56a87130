"""Schema values: equality, hashing, words for messages."""

import copy
import pickle

import pytest

from tesseract_flow.schema import ArrayField, DictField, LeafField, ListField, ModelField, UnionField, describe
from tesseract_flow.schema.fields import ANY, NULL, FrozenMapping, union_of

FLOATS = ArrayField("float64", (None, 3), True)
TEXT = LeafField("str")


def model(**fields):
    return ModelField(fields, frozenset(fields))


def test_equal_models_are_one_key_whatever_the_order_of_fields():
    there, back = model(x=FLOATS, tag=TEXT), model(tag=TEXT, x=FLOATS)
    assert there == back
    assert hash(there) == hash(back)
    assert list(there.fields) == ["x", "tag"], "the order is kept for those who ask"


@pytest.mark.parametrize(
    "other",
    [
        model(x=FLOATS),
        model(x=ArrayField("float32", (None, 3), True), tag=TEXT),
        model(x=ArrayField("float64", (None, 3), False), tag=TEXT),
        model(x=ArrayField("float64", None, True), tag=TEXT),
        ModelField({"x": FLOATS, "tag": TEXT}, frozenset({"x"})),
        ModelField({"x": FLOATS, "tag": TEXT}, frozenset({"x", "tag"}), extra=ANY),
        DictField(FLOATS),
    ],
    ids=["missing", "dtype", "differentiable", "shape", "required", "extra", "kind"],
)
def test_any_difference_makes_models_unequal(other):
    assert model(x=FLOATS, tag=TEXT) != other


def test_models_do_not_follow_the_dict_they_were_made_from():
    fields = {"x": FLOATS}
    made = ModelField(fields, frozenset())
    fields["y"] = TEXT
    assert list(made.fields) == ["x"]
    with pytest.raises(TypeError):
        made.fields["y"] = TEXT  # type: ignore[index]


def test_pickle_and_deepcopy_keep_the_value():
    nested = model(parts=DictField(model(x=FLOATS)), rows=ListField(union_of(FLOATS, NULL)))
    assert pickle.loads(pickle.dumps(nested)) == nested
    unsorted = model(b=TEXT, a=TEXT)
    assert list(pickle.loads(pickle.dumps(unsorted)).fields) == ["b", "a"]
    assert copy.deepcopy(nested) == nested


def test_the_hash_does_not_travel():
    # Text hashes differently in every process, so a pickled hash would break dicts and sets in the receiver.
    fresh, used = FrozenMapping({"x": FLOATS}), FrozenMapping({"x": FLOATS})
    hash(used)
    assert pickle.dumps(fresh) == pickle.dumps(used)


def test_a_frozen_mapping_equals_a_dict():
    assert FrozenMapping({"x": 1, "y": 2}) == {"y": 2, "x": 1}
    assert repr(FrozenMapping({"x": 1})) == "{'x': 1}"


def test_unions_are_flat_and_without_repetitions():
    assert union_of(FLOATS, union_of(NULL, FLOATS), TEXT) == UnionField((FLOATS, NULL, TEXT))
    assert union_of(FLOATS, FLOATS) == FLOATS


def test_list_fields_know_their_items():
    pair = ListField(union_of(TEXT, FLOATS), (TEXT, FLOATS), 2, 2)
    assert [pair.get(index) for index in (0, 1, 2, -1, "a")] == [TEXT, FLOATS, None, None, None]
    assert ListField(TEXT).get(100) == TEXT


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (FLOATS, "float64 array of shape (*, 3)"),
        (ArrayField(None, (None,), False), "array of any dtype of shape (*,)"),
        (ArrayField("int8", (), False), "int8 array of shape ()"),
        (ArrayField("int8", None, False), "int8 array of any rank"),
        (union_of(FLOATS, NULL), "float64 array of shape (*, 3) or None"),
        (union_of(model(a=TEXT), model(b=TEXT)), "model with fields a or model with fields b"),
        (model(), "model without fields"),
        (DictField(LeafField("int")), "dict of int"),
        (ListField(TEXT), "list of str"),
        (ListField(ANY, (TEXT, NULL), 2, 2), "list of 2 (str, None)"),
        (LeafField("enum", ("a", 1)), "'a' | 1"),
        (ANY, "anything"),
        (LeafField("path"), "file path"),
        (ModelField({"root": TEXT}, frozenset({"root"}), is_root=True), "str"),
    ],
)
def test_fields_describe_themselves(field, words):
    assert describe(field) == words
