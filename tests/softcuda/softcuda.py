"""softcuda: PyTorch's CUDA build on a machine without a GPU, with the numbers of a CPU.

`install()` loads the stand-in for the CUDA runtime (softcuda.c, compiled when first needed) before torch is imported, and
afterwards gives every operator with a CUDA kernel one that works on the same memory with the operator's CPU kernel. Operators
are asked for the shapes of their results first (on the meta device); the work itself goes to the current stream, which does it
at once, later (SOFTCUDA_LAZY=1), or with every replay of the graph that is being captured.
"""

import ctypes
import hashlib
import importlib.abc
import itertools
import os
import subprocess
import sys
import sysconfig
import tempfile
import threading
import traceback
from pathlib import Path

HERE = Path(__file__).parent
_library = None
_keep = []  # what must live as long as the process


class Unavailable(Exception):
    """This machine lacks what softcuda needs; one line."""


def install():
    """Make torch, imported after this, see the imaginary device.

    Raises:
        Unavailable: no gcc, a PyTorch without CUDA, or no headers of its CUDA.
    """
    global _library
    if _library is not None:
        return
    if "torch" in sys.modules:
        raise RuntimeError("softcuda must be installed before torch is imported")
    os.environ.setdefault("TRITON_INTERPRET", "1")
    _library = ctypes.CDLL(str(_compiled()), mode=ctypes.RTLD_GLOBAL)
    sys.meta_path.insert(0, _After({"torch": _patch_torch, "triton.runtime.interpreter": _patch_triton}))


def _compiled():
    """The library, compiled if this source and these headers have not been yet."""
    source = HERE / "softcuda.c"
    packages = Path(sysconfig.get_path("purelib"))
    cuda, tritons = packages / "nvidia/cu13/include", packages / "triton/backends/nvidia/include"
    headers = [cuda / "cuda_runtime_api.h", cuda / "driver_types.h", tritons / "crt/host_defines.h"]
    for file in (packages / "torch/lib/libtorch_cuda.so", *headers):
        if not file.exists():
            raise Unavailable(f"it needs PyTorch's build for CUDA 13 and Triton; there is no {file}")
    text = b"".join(file.read_bytes() for file in (source, *headers)) + str(packages).encode()
    name = f"libsoftcuda-{hashlib.sha256(text).hexdigest()[:16]}.so"
    library = Path(os.environ.get("SOFTCUDA_BUILD", tempfile.gettempdir())) / name
    if not library.exists():
        temporary = library.with_suffix(f".{os.getpid()}")
        command = ["gcc", "-shared", "-fPIC", "-O2", f"-I{cuda}", f"-I{tritons}", "-Wl,-soname,libcuda.so.1", str(source)]
        try:
            subprocess.run([*command, "-o", str(temporary), "-lpthread", "-ldl"], check=True, capture_output=True, text=True)
        except OSError as error:
            raise Unavailable(f"gcc cannot be run ({error.strerror})") from None
        except subprocess.CalledProcessError as error:
            said = error.stderr.splitlines()
            why = next((line for line in said if "error" in line or "cannot" in line), f"exit code {error.returncode}")
            raise Unavailable(f"gcc: {why}") from None
        temporary.replace(library)  # whole or not at all: many processes may compile it at once
    return library


class _After(importlib.abc.MetaPathFinder):
    """Calls a function when a module has been imported."""

    def __init__(self, functions):
        self.functions = functions

    def find_spec(self, name, path=None, target=None):
        function = self.functions.get(name)
        if function is None:
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, others), None)
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            if self.functions.pop(name, None):  # only now: some ask for the spec and do not import
                function()

        spec.loader.exec_module = exec_module
        return spec


# ---- memory: a CUDA tensor's memory, seen as a CPU tensor ----


class _Memory:
    def __init__(self):
        size = ctypes.c_uint64()
        _library.softcuda_memory.restype = ctypes.c_uint64
        self.begin = _library.softcuda_memory(ctypes.byref(size))
        self.storage = torch._C._construct_storage_from_data_pointer(self.begin, torch.device("cpu"), size.value)
        self.whole = {}

    def alias(self, tensor):
        """The CPU tensor in the same memory."""
        whole = self.whole.get(tensor.dtype)
        if whole is None:
            whole = torch.empty(0, dtype=tensor.dtype, device="cpu")
            count = self.storage.nbytes() // whole.itemsize
            whole = self.whole[tensor.dtype] = whole.set_(self.storage, 0, (count,), (1,))
        offset = (tensor.data_ptr() - self.begin) // whole.itemsize if tensor.numel() else 0
        return torch.as_strided(whole, tensor.size(), tensor.stride(), offset)


def _map(value, function):
    """`value` with `function` of every tensor in it."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)([_map(item, function) for item in value])
    return value


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _on_host(value):
    """What the CPU's kernel takes in the place of this argument."""
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    if isinstance(value, torch.Generator):
        return None
    return _map(value, lambda tensor: memory.alias(tensor) if tensor.is_cuda else tensor)


# ---- streams: when work is done ----

_works = {}
_ids = itertools.count(1)


def submit(work):
    """Give `work`, a function, to the current stream."""
    stream = ctypes.c_void_p(torch._C._cuda_getCurrentRawStream(0))
    if not _library.softcuda_deferred(stream):
        with _guards():
            return work()
    number = next(_ids)
    _works[number] = work
    _check(_library.softcuda_call(stream, ctypes.c_uint64(number)))


def deferred():
    """Whether the current stream does not do its work at once."""
    return bool(_library.softcuda_deferred(ctypes.c_void_p(torch._C._cuda_getCurrentRawStream(0))))


def wait(name):
    """What an operator does that needs a value on the host: wait for the stream; an error in a capture."""
    mode = torch._C._cuda_get_sync_debug_mode()
    if mode == 2:
        raise RuntimeError(f"called a synchronizing CUDA operation ({name})")
    torch.cuda.current_stream().synchronize()


def _check(error):
    if error:
        _library.cudaGetErrorString.restype = ctypes.c_char_p
        _library.cudaGetLastError()
        raise torch.AcceleratorError(f"CUDA error: {_library.cudaGetErrorString(error).decode()}")


@ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.c_int)
def _called(number, action):
    """The runtime says to do a work and keep it (0), to do it and forget it (1), or to forget it (2)."""
    work = _works.pop(number) if action else _works[number]
    if action == 2:
        return
    try:
        with _guards():
            work()
    except BaseException:  # a fault on the device: the host hears of it when it next asks
        traceback.print_exc()
        _library.softcuda_fail()


class _guards:
    """Below autograd, autocast and whoever else looks on."""

    def __enter__(self):
        self.below = torch._C._AutoDispatchBelowAutograd()
        self.below.__enter__()
        self.plain = torch._C._ExcludeDispatchKeyGuard(_outer_keys)
        self.plain.__enter__()

    def __exit__(self, *error):
        self.plain.__exit__(*error)
        self.below.__exit__(*error)


# ---- random numbers: the real CUDA code takes its (seed, offset) from the generator, and launches a kernel with them ----


def draw(generator):
    """A function that gives the CPU generator of this draw; in a graph, another one with every replay."""
    _library.softcuda_catch(1)
    try:
        _uniform.call_boxed(_cuda_keys, _one(), 0.0, 1.0, generator=generator)
    finally:
        _library.softcuda_catch(0)
    state = (ctypes.c_uint64 * 4).in_dll(_library, "softcuda_caught_state")
    seed, offset, within, captured = state[0], state[1], state[2], state[3] & 0xFF

    def philox():
        at = (ctypes.c_uint64.from_address(value).value for value in (seed, offset)) if captured else (seed, offset)
        text = repr((*at, within)).encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:8], "little", signed=True))

    return philox


_ones = threading.local()


def _one():
    if not hasattr(_ones, "tensor"):
        _ones.tensor = torch.empty(1, device="cuda")
    return _ones.tensor


# ---- operators ----

# Done by the real CUDA code: memory, views, and what only copies.
NATIVE = {
    "as_strided", "view", "_reshape_alias", "unfold", "view_as_real", "view_as_complex", "_nested_view_from_buffer",
    "empty", "empty_strided", "set_", "resize_", "is_set_to", "record_stream", "is_pinned", "_pin_memory", "pin_memory",
    "_local_scalar_dense", "_efficientzerotensor", "_cudnn_init_dropout_state", "cudnn_is_acceptable",
}  # fmt: skip
# Wait for the device, since the shape of their result depends on values, or the result is a number on the host.
WAITING = {
    "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive",
    "bincount", "equal", "repeat_interleave", "histc", "embedding_renorm_", "_ctc_loss",
}  # fmt: skip
# May take a CPU tensor of no dimensions beside CUDA tensors, though they are not tagged as pointwise.
SCALARS = {
    "where", "fill_", "masked_fill_", "masked_fill", "index_put_", "_index_put_impl_", "index_fill_", "scatter_", "lerp",
}  # fmt: skip


class Operator:
    """The CUDA kernel of one operator."""

    def __init__(self, name, op, compute=None):
        self.name, self.op, self.compute = name, op, compute or op
        schema = op._schema
        self.arguments = schema.arguments
        self.base = schema.name.removeprefix("aten::")
        positions = {a.name: i for i, a in enumerate(schema.arguments)}
        written = [a for a in schema.arguments if a.alias_info and a.alias_info.is_write]
        self.out = [positions[a.name] for a in written if a.is_out]
        sets = {name: positions[a.name] for a in written for name in a.alias_info.before_set}
        self.returned = []
        """Of every result: the position of the argument that it is, or None for a new tensor."""
        for result in schema.returns:
            names = result.alias_info.before_set if result.alias_info else ()
            self.returned.append(next((sets[name] for name in names if name in sets), None))
        self.new = None in self.returned
        self.written = [positions[a.name] for a in written]
        self.random = next((positions[a.name] for a in schema.arguments if "Generator" in str(a.type)), None)
        self.scalars = torch.Tag.pointwise in op.tags or self.base in SCALARS or self.base.startswith(("_foreach", "_fused"))
        self.waits = self.base in WAITING
        self.takes_tensor = [i for i, a in enumerate(schema.arguments) if str(a.type) == "Tensor" and not a.kwarg_only]
        self.shapes = {}

    def __call__(self, *args, **kwargs):
        values = list(args) + [kwargs.get(a.name, a.default_value) for a in self.arguments[len(args) :]]
        with _guards():
            return self.run(values)

    def run(self, values):
        self.check_devices(values)
        values = self.prepared(values)
        if self.waits or (self.base == "repeat_interleave" and values[-1] is None):
            wait(self.base)
            return self.at_once(values)
        later = deferred()
        metas = None
        if self.new or self.out or later:
            try:
                metas = self.infer(values)
            except NotImplementedError:
                if self.new and later:
                    if torch.cuda.is_current_stream_capturing():
                        raise NotImplementedError(f"softcuda cannot tell the shape of what {self.name} makes") from None
                    torch.cuda.current_stream().synchronize()
                    return self.at_once(values)
                if self.new:
                    return self.at_once(values)
        if self.out and metas is not None:
            for position, meta in zip(self.out, metas[1], strict=True):
                if values[position].shape != meta[0]:
                    values[position].resize_(meta[0])
        host = [_on_host(value) for value in values]
        if later:
            host = [_map(value, _kept) for value in host]
        results = outs = None
        if self.new:
            results = [None if where is not None else _made(meta) for where, meta in zip(self.returned, metas[0], strict=True)]
            outs = [_map(result, memory.alias) for result in results]
        submit(self.work(host, outs, values))
        return self.answer(values, results)

    def work(self, host, outs, values):
        """What the stream is to do."""
        philox = draw(values[self.random]) if self.random is not None else None

        def work():
            arguments = list(host)
            if philox:
                arguments[self.random] = philox()
            made = self.called(arguments, _computed)
            if outs is not None:
                for out, value in zip(outs, made, strict=True):
                    _put(out, value)

        return work

    def called(self, values, how):
        """The results, as a tuple, of the CPU's kernel or of that for meta tensors."""
        positional = [value for value, a in zip(values, self.arguments, strict=True) if not a.kwarg_only]
        named = {a.name: value for value, a in zip(values, self.arguments, strict=True) if a.kwarg_only}
        compute = self.compute
        if compute is self.op and any(isinstance(positional[i], (int, float, complex)) for i in self.takes_tensor):
            compute = self.op.overloadpacket  # a number in the place of a tensor: it counts less where types are promoted
        made = how(compute, positional, named)
        return made if isinstance(made, tuple) else (made,)

    def answer(self, values, results):
        answers = [values[where] if where is not None else results[i] for i, where in enumerate(self.returned)]
        return None if not answers else answers[0] if len(answers) == 1 else tuple(answers)

    def at_once(self, values):
        """Compute now; the results say themselves how large they are."""
        host = [_on_host(value) for value in values]
        if self.random is not None:
            host[self.random] = draw(values[self.random])()
        for position in self.out:
            host[position] = torch.empty(0, dtype=host[position].dtype)
        made = self.called(host, _computed)
        for position in self.out:
            values[position].resize_(host[position].shape)
            memory.alias(values[position]).copy_(host[position])
        return self.answer(values, [_map(value, _moved) for value in made])

    def prepared(self, values):
        if self.base in ("index", "_index_put_impl_", "index_put_", "_unsafe_index"):
            moved = [t if t is None or t.is_cuda else t.to(values[0].device) for t in values[1]]
            masks = [t for t in moved if t is not None and t.dtype in (torch.bool, torch.uint8)]
            filling = "put" in self.base and len(moved) == 1 and not values[2].is_cuda and values[2].numel() == 1
            if masks and not filling:
                wait(self.base)
                if self.base.endswith("index"):
                    split = []
                    for t in moved:
                        mask = t is not None and t.dtype in (torch.bool, torch.uint8)
                        split += list(torch.nonzero(t).unbind(1)) if mask else [t]
                    moved = split
            values[1] = moved
        return values

    def check_devices(self, values):
        first = None
        for value in values:
            for tensor in _tensors(value):
                if tensor.is_cuda:
                    first = tensor
        if first is None:
            return
        indices = self.base in ("index", "index_put_", "_index_put_impl_", "_unsafe_index")
        for argument, value in zip(self.arguments, values, strict=True):
            for tensor in _tensors(value):
                if tensor.is_cuda or (tensor.dim() == 0 and self.scalars) or (indices and argument.name == "indices"):
                    continue
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but got {argument.name} is on {tensor.device}, different "
                    f"from other tensors on {first.device} (when checking argument in method wrapper_CUDA_{self.base})"
                )

    def infer(self, values):
        """(of every result, of every `out`): (size, stride, dtype), None, or a list of those."""
        key, scalar, largest = [], False, 0
        for value in values:
            key.append(_signature(value))
            for tensor in _tensors(value):
                scalar |= not tensor.is_cuda
                largest = max(largest, tensor.dim())
        key = None if scalar and not largest else tuple(key)
        try:
            found = self.shapes.get(key) if key else None
        except TypeError:
            key = found = None
        if found is None:
            metas = [_on_meta(value) for value in values]
            made = self.called(metas, lambda function, positional, named: function(*positional, **named))
            found = [_map(value, _shape) for value in made], [_shape(metas[position]) for position in self.out]
            if key:
                self.shapes[key] = found
        return found


def _signature(value):
    if isinstance(value, torch.Tensor):
        return value.size(), value.stride(), value.dtype, value.is_cuda
    if isinstance(value, (list, tuple)):
        return tuple(_signature(item) for item in value)
    return type(value), value


def _on_meta(value):
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("meta")
    if isinstance(value, torch.Generator):
        return None

    def meta(tensor):
        if not tensor.is_cuda:
            return tensor
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")

    return _map(value, meta)


def _shape(tensor):
    return tensor.size(), tensor.stride(), tensor.dtype


def _made(meta):
    """New CUDA tensors of these shapes."""
    if isinstance(meta, tuple) and len(meta) == 3 and isinstance(meta[2], torch.dtype):
        return torch.empty_strided(meta[0], meta[1], dtype=meta[2], device="cuda")
    return [_made(item) for item in meta] if isinstance(meta, (list, tuple)) else None


def _moved(tensor):
    made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cuda")
    memory.alias(made).copy_(tensor)
    return made


def _put(out, value):
    if isinstance(out, torch.Tensor):
        if value.numel() or not out.numel():  # the CPU leaves some results out that CUDA makes, which nobody reads
            out.copy_(value)
    elif isinstance(out, list):
        for one, other in zip(out, value, strict=True):
            _put(one, other)


def _kept(tensor):
    """A scalar on the host has the value that it has when the kernel is launched."""
    return tensor if tensor.untyped_storage().data_ptr() == memory.begin else tensor.clone()


def _computed(compute, positional, named):
    """Call the CPU kernel; one that has none for 16 bits gets 32."""
    try:
        return compute(*positional, **named)
    except RuntimeError as error:
        if "not implemented for" not in str(error):
            raise
    half = []

    def widened(tensor):
        if tensor.dtype not in (torch.float16, torch.bfloat16):
            return tensor
        half.append((tensor, tensor.float()))
        return half[-1][1]

    made = compute(*[_map(value, widened) for value in positional], **{k: _map(v, widened) for k, v in named.items()})
    for narrow, wide in half:
        narrow.copy_(wide)
    return made


# ---- operators that the CPU has under another name ----


def _convolution(self, weight, padding, stride, dilation, groups, *_):
    return torch.ops.aten.convolution(self, weight, None, stride, padding, dilation, False, [0] * len(stride), groups)


def _transposed(self, weight, padding, output_padding, stride, dilation, groups, *_):
    return torch.ops.aten.convolution(self, weight, None, stride, padding, dilation, True, output_padding, groups)


def _batch_norm(input, weight, bias, mean, var, training, momentum, epsilon):
    made = torch.ops.aten.native_batch_norm(input, weight, bias, mean, var, training, momentum, epsilon)
    return *made, torch.empty(0, dtype=torch.uint8)


def _batch_norm_backward(input, grad, weight, mean, var, save_mean, save_var, epsilon, reserve):
    return torch.ops.aten.native_batch_norm_backward(
        grad.contiguous(memory_format=_format(input)), input, weight, mean, var, save_mean, save_var, True, epsilon,
        [True, True, True],
    )  # fmt: skip


def _format(tensor):
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


class _Copy(Operator):
    """Between tensors of the device; between device and host the real CUDA code copies."""

    def run(self, values):
        self_, source, non_blocking = values
        if self_.is_cuda and source.is_cuda:
            torch.broadcast_shapes(self_.shape, source.shape)
            to, of = memory.alias(self_), memory.alias(source)
            if to.data_ptr() != of.data_ptr() or to.stride() != of.stride() or to.dtype != of.dtype:
                submit(lambda: to.copy_(of))
            return self_
        return _native_copy.call_boxed(_cuda_keys, self_, source, non_blocking)


class _Dropout(Operator):
    def run(self, values):
        input, p, train = values
        if train is False:  # None means training
            return input.clone(), torch.ones_like(input, dtype=torch.bool)
        result, mask = torch.empty_like(input), torch.empty_like(input, dtype=torch.bool)
        philox, of, to, chosen = draw(None), *map(memory.alias, (input, result, mask))

        def work():
            chosen.copy_(torch.rand(chosen.shape, generator=philox()) >= p)
            to.copy_(of * chosen * (1 / (1 - p) if p < 1 else 0.0))

        submit(work)
        return result, mask


def _patch_torch():
    global torch, memory, _uniform, _native_copy, _cuda_keys, _outer_keys
    import torch

    keys = torch._C.DispatchKey
    _cuda_keys = torch._C.DispatchKeySet(keys.CUDA)
    _outer_keys = torch._C.DispatchKeySet(keys.ADInplaceOrView)
    for key in (keys.AutocastCPU, keys.AutocastCUDA, keys.Python, keys.PythonTLSSnapshot):
        _outer_keys = _outer_keys | torch._C.DispatchKeySet(key)
    memory = _Memory()
    _library.softcuda_python(_called)
    _uniform = torch.library.get_kernel("aten::uniform_", "CUDA")
    _native_copy = torch.library.get_kernel("aten::copy_", "CUDA")
    library = torch.library.Library("aten", "IMPL")
    _keep.append(library)
    others = {
        "cudnn_convolution": _convolution,
        "cudnn_convolution_transpose": _transposed,
        "cudnn_batch_norm": _batch_norm,
        "cudnn_batch_norm_backward": _batch_norm_backward,
    }
    names = {name for name in torch._C._dispatch_get_registrations_for_dispatch_key("CUDA") if name.startswith("aten::")}
    for name in sorted(names | {"aten::copy_"}):
        base, _, overload = name.removeprefix("aten::").partition(".")
        if base in NATIVE:
            continue
        kind = {"copy_": _Copy, "native_dropout": _Dropout}.get(base, Operator)
        op = getattr(getattr(torch.ops.aten, base), overload or "default")
        kernel = kind(name, op, None if overload else others.get(base))
        library.impl(name.removeprefix("aten::"), kernel, "CUDA", allow_override=True)
    _patch_compile()


def _patch_compile():
    """Inductor would make Triton code for a compiler that there is not; the same program goes without it."""
    compile = torch.compile

    def compile_eagerly(model=None, *, backend="inductor", mode=None, options=None, **others):
        return compile(model, backend="aot_eager" if backend == "inductor" else backend, **others)

    torch.compile = compile_eagerly


def _patch_triton():
    from triton.runtime import interpreter

    executor = interpreter.GridExecutor
    call = executor.__call__

    def on_stream(self, *args, **kwargs):
        values = [*args, *kwargs.values()]
        if not any(tensor.is_cuda for tensor in _tensors(values)):
            return call(self, *args, **kwargs)
        if not all(tensor.is_cuda for tensor in _tensors(values)):
            raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
        args, kwargs = [_on_host(value) for value in args], {name: _on_host(value) for name, value in kwargs.items()}
        submit(lambda: call(self, *args, **kwargs))

    executor.__call__ = on_stream
    executor._restore_args_dev = lambda *_: None  # the memory is the same
