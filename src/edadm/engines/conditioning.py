"""The parts of a network that do not depend on the image: the timestep's path, keys and values of a text or class.

A sampler calls the network with the same timesteps for every batch, and with the same condition at every step, so these
parts are compiled apart, and computed once for each.
"""

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import openvino as ov
from openvino import opset13 as op

from edadm.engines.graph import read_instead, readers

KEPT = 64 * 2**20  # bytes of results that a part keeps
# between a quantization and the product that computes with its integers; cut apart from it, the product would be float
_LAYOUT = {"FakeQuantize", "Convert", "Multiply", "Subtract", "Reshape", "Transpose", "Unsqueeze", "Broadcast"}


class Part:
    """A compiled part that does not depend on the image, with its latest results."""

    def __init__(self, model: ov.Model, compiled: ov.CompiledModel) -> None:
        # compiling loses the names
        self._inputs, self._outputs = ([port.any_name for port in ports] for ports in (model.inputs, model.outputs))
        self._request = compiled.create_infer_request()
        self._kept: OrderedDict[tuple[bytes, ...], dict[str, np.ndarray]] = OrderedDict()

    def __call__(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name, from the network's inputs by name; not to be written to."""
        own = [given[name] for name in self._inputs]
        key = tuple(value.tobytes() for value in own)
        if key not in self._kept:
            self._request.infer(own)
            tensors = map(self._request.get_output_tensor, range(len(self._outputs)))
            found = {name: tensor.data.copy() for name, tensor in zip(self._outputs, tensors, strict=True)}
            self._kept[key] = found
            most = max(1, KEPT // max(1, sum(value.nbytes for value in found.values())))
            while len(self._kept) > most:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def take_apart(graph: ov.Model) -> list[ov.Model]:
    """``graph`` as what depends on its first input, then a model for each set of inputs that others depend on alone.

    The outputs of these are inputs of the first, of the same names. The shape of the first input is static, and shapes
    that are known are constants (``settle_shapes``). The given graph is used up.
    """
    given = {port.get_node().get_name(): port.get_node() for port in graph.inputs}
    image = graph.inputs[0].get_node().get_name()
    depends = _dependences(graph)
    main = {name for name, inputs in depends.items() if image in inputs}
    cuts: dict[frozenset[str], list[ov.Output]] = {}
    for node in [node for node in graph.get_ordered_ops() if node.get_name() in main]:
        for value in node.input_values():
            inputs = depends[value.get_node().get_name()]
            if not inputs or value.get_node().get_name() in main:
                continue
            quantized = _quantization(value)
            main.update(each.get_name() for each in quantized)
            cut = quantized[-1].input_value(0) if quantized else value
            if cut.get_node().get_type_name() != "Parameter" and cut not in cuts.setdefault(inputs, []):
                cuts[inputs].append(cut)
    parts, added = [], []
    for inputs, values in cuts.items():
        for value in values:
            name = f"apart.{len(added)}"
            parameter = op.parameter(value.get_partial_shape(), value.get_element_type(), name=name)
            for target in value.get_target_inputs():
                if target.get_node().get_name() in main:
                    target.replace_source_output(parameter.output(0))
            for port in (parameter.output(0), value):
                port.get_tensor().set_names({name})
            added.append(parameter)
        if values:
            own = [given[name] for name in given if name in inputs]
            parts.append(ov.Model([op.result(value) for value in values], own))
    read = [node for node in given.values() if main.intersection(reader.get_name() for reader in readers(node))]
    return [ov.Model(graph.get_results(), [*read, *added]), *parts]


def settle_shapes(graph: ov.Model) -> None:
    """Make constants of the shapes that are known, so that no part has to hand them to another.

    OpenVINO knows what a reshape to sizes of an input gives even where others of its sizes are unknown, but no longer
    when that shape comes from another part: all that follows would be of unknown, and slower, shapes.
    """
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "ShapeOf" and node.get_input_partial_shape(0).is_static:
            shape = op.constant(np.array(list(node.get_input_shape(0)), node.get_element_type().to_dtype()))
            read_instead(node.output(0), shape.output(0))
        elif node.get_type_name() == "Reshape" and node.get_output_partial_shape(0).is_static:
            node.input(1).replace_source_output(op.constant(np.array(list(node.get_output_shape(0)))).output(0))


def _dependences(graph: ov.Model) -> dict[str, frozenset[str]]:
    """The inputs that each node depends on."""
    found: dict[str, frozenset[str]] = {}
    for node in graph.get_ordered_ops():
        above = [found[value.get_node().get_name()] for value in node.input_values()]
        own = {node.get_name()} if node.get_type_name() == "Parameter" else set()
        found[node.get_name()] = frozenset(own.union(*above))
    return found


def _quantization(value: ov.Output) -> list[ov.Node]:
    """The nodes from ``value`` up to the quantization whose integers it is, or none."""
    nodes, node = [], value.get_node()
    while node.get_type_name() in _LAYOUT and len(readers(node)) == 1:
        nodes.append(node)
        if node.get_type_name() == "FakeQuantize":
            return nodes
        node = node.input_value(0).get_node()
    return []
