"""The plain GLM that the family is held to, itself held to the tables of the paper's example (figure 2)."""

import torch

from tests.examples.glm_blank_reference import BASE, GLMReference, Span, position_rows, visible
from tests.examples.references import randomise

# x1 .. x6 with the spans [x3] and [x5, x6] blanked: the context is x1 x2 [M] x4 [M], its masks at 2 and 4. The second span is read first
# (spans are shuffled in training): [S] x5 x6, then [S] x3. The paper counts positions from 1.
CONTEXT = 5
SPANS = (Span(4, 3), Span(2, 2))


def test_positions_are_those_of_the_paper() -> None:
    rows = position_rows(CONTEXT, SPANS)
    assert (rows[0] + 1).tolist() == [1, 2, 3, 4, 5, 5, 5, 5, 3, 3]
    assert rows[1].tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 1, 2]


def test_the_mask_is_that_of_the_paper() -> None:
    assert visible(CONTEXT + 5, CONTEXT).tolist() == [
        [1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    ]


def test_the_context_sees_itself_whole_and_spans_see_what_came_before() -> None:
    model = GLMReference(BASE)
    randomise(model, seed=0, spread=0.2)
    context, spans = [9, 8, 7, 6, 5], [(4, [3, 2, 1]), (2, [3, 11])]
    whole = model.read(context, spans)
    torch.testing.assert_close(model.read(context, spans[:1]), whole[:8])  # what comes later is not seen
    torch.testing.assert_close(model.read(context, []), whole[:5])
    changed = model.read([9, 8, 7, 6, 4], spans)
    assert all(float((changed[i] - whole[i]).abs().max()) > 1e-3 for i in range(10))  # the context's last token is seen by all
    other = model.read(context, [(4, [3, 2, 12]), (2, [3, 11])])
    torch.testing.assert_close(other[:7], whole[:7])
    assert float((other[9] - whole[9]).abs().max()) > 1e-3  # and the second span sees the first


def test_scores_are_those_of_the_formula() -> None:
    """One token at place 0 of one layer, by hand: attention over one key is its value."""
    model = GLMReference({**BASE, "num_layers": 1})
    randomise(model, seed=1, spread=0.2)
    layer, state = model.transformer["layers"][0], model.transformer
    x = model.word_embeddings.weight[7] + state["position_embeddings"].weight[0] + state["block_position_embeddings"].weight[0]
    v = layer.attention["query_key_value"](layer.input_layernorm(x))[128:]
    x = x + layer.attention["dense"](v)
    hidden = layer.mlp["dense_h_to_4h"](layer.post_attention_layernorm(x))
    x = x + layer.mlp["dense_4h_to_h"](torch.nn.functional.gelu(hidden, approximate="tanh"))
    expected = model.word_embeddings.weight @ state["final_layernorm"](x)
    torch.testing.assert_close(model.read([7], [])[0], expected, rtol=1e-4, atol=1e-4)
