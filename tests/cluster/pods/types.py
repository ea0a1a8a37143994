"""Which type may be bound to which: the rules of flytepropeller's compiler (validators/typing.go)."""

from __future__ import annotations

from collections.abc import Iterable

from flyteidl.core.literals_pb2 import Literal, Primitive, Scalar
from flyteidl.core.types_pb2 import (
    BINARY,
    BOOLEAN,
    DATETIME,
    DURATION,
    FLOAT,
    INTEGER,
    NONE,
    STRING,
    STRUCT,
    LiteralType,
    StructuredDatasetType,
    UnionType,
)

PRIMITIVES = {
    "integer": INTEGER,
    "float_value": FLOAT,
    "string_value": STRING,
    "boolean": BOOLEAN,
    "datetime": DATETIME,
    "duration": DURATION,
}


def castable(source: LiteralType, target: LiteralType) -> bool:
    """Whether a value of the source's type may go where the target's is wanted."""
    variants = source.union_type.variants
    if len(variants) == 1 and _castable(variants[0], target):
        return True
    return _castable(source, target)


def _castable(source: LiteralType, target: LiteralType) -> bool:
    match target.WhichOneof("type"):
        case "collection_type":
            return _inside(source, source.collection_type, target.collection_type, "collection_type")
        case "map_value_type":
            return _inside(source, source.map_value_type, target.map_value_type, "map_value_type")
        case "blob":
            formats = {source.blob.format, target.blob.format}
            return source.HasField("blob") and ("" in formats or len(formats) == 1)
        case "union_type":
            return _fits_union(source, target.union_type)
        case "structured_dataset_type":
            return is_none(source) or (
                source.HasField("structured_dataset_type")
                and _columns(source.structured_dataset_type, target.structured_dataset_type)
            )
    return is_none(source) if is_none(target) else _same(source, target)


def _inside(source: LiteralType, part: LiteralType, target_type: LiteralType, field: str) -> bool:
    """Whether lists or maps match: what is empty fits any."""
    return source.HasField(field) and (is_none(part) or castable(part, target_type))


def _fits_union(source: LiteralType, target: UnionType) -> bool:
    """Whether each variant finds a place, and a plain type exactly one."""
    if source.HasField("union_type"):
        return all(any(castable(own, to) for to in target.variants) for own in source.union_type.variants)
    return sum(castable(source, to) for to in target.variants) == 1


def _columns(source: StructuredDatasetType, target: StructuredDatasetType) -> bool:
    """Whether the format is the same, where both say one, and every wanted column is there."""
    if source.format and target.format and source.format.lower() != target.format.lower():
        return False
    have = {column.name: column.literal_type for column in source.columns}
    return not have or all(c.name in have and castable(have[c.name], c.literal_type) for c in target.columns)


def _same(source: LiteralType, target: LiteralType) -> bool:
    """Whether simple types are equal; texts and enums go for each other, structures have to have the same schema."""
    if source.HasField("enum_type") and target.simple == STRING:
        return True
    if target.HasField("enum_type") and source.WhichOneof("type") == "simple" and source.simple == STRING:
        return True
    if source.structure.tag and source.structure.tag != target.structure.tag:
        return False
    if source.simple == target.simple == STRUCT:
        both_have_metadata = source.HasField("metadata") and target.HasField("metadata")
        return not both_have_metadata or source.metadata == target.metadata
    return _bare(source) == _bare(target)


def _bare(kind: LiteralType) -> LiteralType:
    copied = LiteralType()
    copied.CopyFrom(kind)
    for field in ("structure", "metadata", "annotation"):
        copied.ClearField(field)
    return copied


def is_none(kind: LiteralType) -> bool:
    """Whether this is the type of None."""
    return kind.WhichOneof("type") == "simple" and kind.simple == NONE


def optional(kind: LiteralType) -> bool:
    """Whether None is among the variants."""
    return any(is_none(variant) for variant in kind.union_type.variants)


def type_of(value: Literal) -> LiteralType:
    """The type of a value, as far as the value tells."""
    match value.WhichOneof("value"):
        case "collection":
            return LiteralType(collection_type=_common(value.collection.literals))
        case "map":
            return LiteralType(map_value_type=_common(value.map.literals.values()))
    return type_of_scalar(value.scalar)


def _common(values: Iterable[Literal]) -> LiteralType:
    """The one type of the elements; a union of several; None without any."""
    kinds = {kind.SerializeToString(deterministic=True): kind for kind in map(type_of, values)}
    ordered = [kinds[key] for key in sorted(kinds)]
    match ordered:
        case []:
            return LiteralType(simple=NONE)
        case [only]:
            return only
    return LiteralType(union_type=UnionType(variants=ordered))


def type_of_scalar(value: Scalar) -> LiteralType:
    """The type of a scalar."""
    match value.WhichOneof("value"):
        case "primitive":
            return LiteralType(simple=type_of_primitive(value.primitive))
        case "blob":
            return LiteralType(blob=value.blob.metadata.type)
        case "binary":
            return LiteralType(simple=STRUCT if value.binary.tag == "msgpack" else BINARY)
        case "generic":
            return LiteralType(simple=STRUCT)
        case "structured_dataset":
            return LiteralType(structured_dataset_type=value.structured_dataset.metadata.structured_dataset_type)
        case "union":
            return LiteralType(union_type=UnionType(variants=[value.union.type]))
        case "none_type":
            return LiteralType(simple=NONE)
        case other:
            raise ValueError(f"a scalar of {other} has no type here")


def type_of_primitive(value: Primitive) -> int:
    """The simple type of a primitive."""
    return PRIMITIVES[value.WhichOneof("value") or "integer"]
