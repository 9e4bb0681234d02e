"""What the kernels in C are called with: the structures of native/*.h, field by field, where each field is explained."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int, c_int64, c_void_p

_long, _pointer = c_int64, c_void_p


class Matrix(Structure):
    _fields_ = (("columns", _long), ("k", _long), ("from_", _pointer), ("form", c_int), ("gate", c_int))


class Linear(Structure):
    _fields_ = (
        ("rows", _long),
        ("matrix", Matrix),
        ("packed", _pointer),
        ("x", _pointer),
        ("ldx", _long),
        ("bias", _pointer),
        ("add", _pointer),
        ("ld_add", _long),
        ("y", _pointer),
        ("ldy", _long),
        ("scratch", _pointer),
        ("scratch_size", _long),
    )


class Winograd(Structure):
    _fields_ = (
        ("batch", _long),
        ("height", _long),
        ("width", _long),
        ("in_", _long),
        ("out", _long),
        ("rows", _long),
        ("top", _long),
        ("x", _pointer),
        ("weight", _pointer),
        ("bias", _pointer),
        ("shift", _pointer),
        ("add", _pointer),
        ("y", _pointer),
        ("scratch", _pointer),
        ("block", _long),
        ("kind", c_int),
        ("doubled", c_int),
        ("wrap_x", c_int),
        ("wrap_y", c_int),
    )


class Attention(Structure):
    _fields_ = (
        ("batch", _long),
        ("heads", _long),
        ("d", _long),
        ("queries", _long),
        ("keys", _long),
        ("q", _pointer),
        ("k", _pointer),
        ("v", _pointer),
        ("ld_q", _long),
        ("ld_k", _long),
        ("ld_v", _long),
        ("y", _pointer),
        ("scale", c_float),
        ("scratch", _pointer),
    )


class GroupNorm(Structure):
    _fields_ = (
        ("batch", _long),
        ("pixels", _long),
        ("channels", _long),
        ("groups", _long),
        ("x", _pointer),
        ("weight", _pointer),
        ("bias", _pointer),
        ("eps", c_float),
        ("silu", c_int),
        ("y", _pointer),
        ("sums", _pointer),
    )


class Normalise(Structure):
    _fields_ = (
        ("pixels", _long),
        ("channels", _long),
        ("x", _pointer),
        ("level", _pointer),
        ("scale", _pointer),
        ("bias", _pointer),
        ("silu", c_int),
        ("y", _pointer),
    )


class LayerNorm(Structure):
    _fields_ = (
        ("rows", _long),
        ("width", _long),
        ("x", _pointer),
        ("weight", _pointer),
        ("bias", _pointer),
        ("eps", c_float),
        ("y", _pointer),
    )


class PackRows(Structure):
    _fields_ = (("matrix", Matrix), ("to", _pointer))


class PackWinograd(Structure):
    _fields_ = (
        ("out", _long),
        ("in_", _long),
        ("from_", _pointer),
        ("to", _pointer),
        ("form", c_int),
        ("kind", c_int),
    )
