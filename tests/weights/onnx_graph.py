"""An ONNX model as a converter from TensorFlow writes it: names that tell nothing."""

import numpy as np

from benchmarks.fuzzed_readers import field


class Graph:
    """Writes an ONNX model node by node; constants come in no order that tells anything."""

    def __init__(self):
        self.nodes, self.tensors, self.last = b"", [], "input_tensor:0"

    def constant(self, array):
        name = f"const_fold_opt__{len(self.tensors)}"
        array = np.ascontiguousarray(array)
        kind = field(2, {"float32": 1, "int64": 7}[str(array.dtype)])
        shape = b"".join(field(1, n) for n in array.shape)
        self.tensors.append(field(5, shape + kind + field(8, name.encode()) + field(9, array.tobytes())))
        return name

    def node(self, operator, *constants, name="", inputs=None, attributes=b""):
        """Adds a node that reads what the last one gave, and constants."""
        name = name or f"{operator}__{self.nodes.count(b':0')}"
        reads = (inputs or [self.last]) + [self.constant(array) for array in constants]
        message = b"".join(field(1, read.encode()) for read in reads) + field(2, f"{name}:0".encode())
        message += field(3, name.encode()) + field(4, operator.encode()) + attributes
        self.nodes += field(1, message)
        self.last = f"{name}:0"
        return self.last

    def norm(self, norm, name):
        """A batch norm that stayed one, with an epsilon of its own."""
        arrays = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
        epsilon = bytes([2 << 3 | 5]) + np.float32(norm.eps).tobytes()
        attribute = field(5, field(1, b"epsilon") + epsilon)
        return self.node(
            "BatchNormalization", *(a.detach().numpy() for a in arrays), name=name, attributes=attribute
        )

    def folded(self, conv, norm, **options):
        """A convolution that the norm after it was folded into."""
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        bias = norm.bias - norm.running_mean * scale
        weight = conv.weight * scale[:, None, None, None]
        return self.node("Conv", weight.detach().numpy(), bias.detach().numpy(), **options)

    def write(self, path):
        random = np.random.default_rng(0)
        tensors = b"".join(self.tensors[i] for i in random.permutation(len(self.tensors)))
        path.write_bytes(field(1, 3) + field(7, tensors + self.nodes))
