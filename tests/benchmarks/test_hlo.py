"""What a program's ops are, against programs whose ops are known."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import hlo

# As XLA's text is; the copy and the rewritten convolution have no scope of their own.
TEXT = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[4,4]{1,0})->f32[4,4]}

%fused_add (param_0: f32[4,4]) -> f32[4,4] {
  %param_0 = f32[4,4]{1,0} parameter(0)
  %dot.1 = f32[4,4]{1,0} dot(%param_0, %param_0), metadata={op_name="jit(step)/dot"}
  ROOT %add.1 = f32[4,4]{1,0} add(%dot.1, %param_0), metadata={op_name="jit(step)/add"}
}

ENTRY %main.7 (w.1: f32[4,4]) -> (f32[4,4], f32[]) {
  %w.1 = f32[4,4]{1,0} parameter(0), metadata={op_name="state.params['w']"}
  %tanh.1 = f32[4,4]{1,0} tanh(%w.1), metadata={op_name="jit(f)/jvp(M)/layer/tanh"}
  %copy.2 = f32[4,4]{0,1} copy(%tanh.1)
  %convolution.3 = f32[4,4]{1,0} convolution(%copy.2, %w.1), dim_labels=bf_io->bf
  %neg.4 = f32[4,4] negate(%convolution.3), metadata={op_name="jit(f)/transpose(jvp(M))"}
  %fusion.5 = f32[4,4]{1,0} fusion(%neg.4), kind=kLoop, calls=%fused_add
  %cublas.6 = (f32[4,4], s8[9]) custom-call(%fusion.5), custom_call_target="__cublas$gemm"
  ROOT %while.8 = (f32[4,4]{1,0}, /*index=1*/f32[]) while(%cublas.6), condition=%c, body=%b
}
"""


def test_the_text_says_kind_part_and_layer():
    assert hlo.name_of(TEXT) == "jit_step"
    ops = hlo.ops_of(TEXT)
    told = {name: (op.kind, op.part, op.where) for name, op in ops.items()}
    rest = hlo.PARTS[-1]
    assert told["tanh.1"] == ("elementwise", "forward", "M/layer/tanh")
    assert told["fusion.5"] == ("matrix product", rest, "add")
    assert told["cublas.6"][0] == "matrix product"
    assert told["while.8"][0] == hlo.CALL
    assert ops["while.8"].result == "(f32[4,4], f32[])"


def test_what_xla_made_itself_is_of_what_it_is_for():
    ops = hlo.ops_of(TEXT)
    assert [ops[name].part for name in ("copy.2", "convolution.3")] == ["backward"] * 2
    assert ops["convolution.3"].where == ops["neg.4"].where
    assert ops["copy.2"].kind == "copy, transposition"


def test_a_compiled_program_has_its_products_forward_and_backward():
    def loss(w, x):
        return jnp.sin(x @ w).sum()

    def step(w, x):
        return w - jax.grad(loss)(w, x)

    shapes = np.ones((16, 16), np.float32), np.ones((8, 16), np.float32)
    ops = hlo.ops_of(jax.jit(step).lower(*shapes).compile().as_text())
    products = [op for op in ops.values() if op.kind == "matrix product"]
    assert {op.part for op in products} >= {"forward", "backward"}
