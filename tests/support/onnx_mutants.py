"""Files as nobody wrote them: bytes and fields of good ones changed at random, the same for a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import onnx
from google.protobuf.message import Message

_NUMBERS = (0, 1, -1, 2, 3, 7, 16, 255, 2**20, 2**31 - 1, -(2**31), 2**40, 2**62, -(2**63))
_WORDS = ("", "x", "Conv", "Add", "Reshape", "LSTM", "If", "Loop", "../../etc/passwd", "\u00e4" * 9, "a" * 300)


def mutant(raw: bytes, seed: int) -> bytes:
    """The file with one to eight changes: of bytes, or of fields, which keep it readable."""
    chance = random.Random(seed)
    if seed % 4 == 0:
        return _bytes_changed(raw, chance)
    model = onnx.load_model_from_string(raw)
    for _ in range(chance.choice((1, 1, 2, 8))):
        _change(chance.choice(list(_messages(model))), chance)
    return model.SerializeToString()


def _bytes_changed(raw: bytes, chance: random.Random) -> bytes:
    data = bytearray(raw)
    for _ in range(chance.choice((1, 2, 8))):
        at, how = chance.randrange(len(data)), chance.randrange(4)
        if how == 0:
            data[at] = chance.randrange(256)
        elif how == 1:
            data[at] ^= 1 << chance.randrange(8)
        elif how == 2:
            del data[at : at + chance.randrange(1, 40)]
        else:
            data[at:at] = data[at : at + chance.randrange(1, 40)]
    return bytes(data)


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for each in value if field.is_repeated else (value,):
                yield from _messages(each)


def _change(message: Any, chance: random.Random) -> None:
    fields = message.DESCRIPTOR.fields
    field = chance.choice([field for field, _ in message.ListFields()] or list(fields))
    if chance.random() < 0.2:
        field = chance.choice(list(fields))
    if field.is_repeated:
        _change_list(getattr(message, field.name), field, chance)
    elif field.type == field.TYPE_MESSAGE or chance.random() < 0.15:
        message.ClearField(field.name)
    else:
        _set(lambda value: setattr(message, field.name, value), field, chance)


def _change_list(values: Any, field: Any, chance: random.Random) -> None:
    how = chance.randrange(3)
    if values and how == 0:
        del values[chance.randrange(len(values))]
    elif values and how == 1:
        one = values[chance.randrange(len(values))]
        if field.type == field.TYPE_MESSAGE:
            values.add().CopyFrom(one)
        else:
            values.append(one)
    elif field.type != field.TYPE_MESSAGE:
        place = chance.randrange(len(values)) if values else None
        if place is None:
            _set(values.append, field, chance)
        else:
            _set(lambda value: values.__setitem__(place, value), field, chance)


def _set(put: Any, field: Any, chance: random.Random) -> None:
    if field.type == field.TYPE_STRING:
        put(chance.choice(_WORDS))
    elif field.type == field.TYPE_BYTES:
        put(bytes(chance.randrange(256) for _ in range(chance.randrange(20))))
    elif field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        put(chance.choice((0.0, -1.0, 1e30, float("nan"), float("inf"))))
    elif field.type == field.TYPE_ENUM:
        put(chance.choice(field.enum_type.values).number)
    elif field.type in (field.TYPE_INT32, field.TYPE_SINT32):
        put(chance.choice([number for number in _NUMBERS if abs(number) < 2**31]))
    else:
        unsigned = field.type in (field.TYPE_UINT32, field.TYPE_UINT64)
        put(chance.choice([number for number in _NUMBERS if number >= 0 or not unsigned]))
