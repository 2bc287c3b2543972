import torch

from vlm_agent.policy.scoring.phrases import PhraseTree, packed_mask, packed_positions

WORDS = [(1, 2), (1, 3, 4), (5,), (1, 3, 6), (7, 8)]


def test_words_that_begin_alike_share_nodes():
    tree = PhraseTree.of(WORDS)
    # Proper beginnings: (1), (1, 3) and (7); a word's last token is predicted, never read.
    assert tree.node_tokens == (1, 3, 7)
    assert tree.node_parents == (0, 1, 0)
    assert tree.node_depths == (1, 2, 1)
    edges = list(zip(tree.edge_words, tree.edge_states, tree.edge_tokens, strict=True))
    assert edges == [
        (0, 0, 1),
        (0, 1, 2),
        (1, 0, 1),
        (1, 1, 3),
        (1, 2, 4),
        (2, 0, 5),
        (3, 0, 1),
        (3, 1, 3),
        (3, 2, 6),
        (4, 0, 7),
        (4, 3, 8),
    ]


def test_first_tokens_alone_need_no_nodes():
    tree = PhraseTree.of([word[:1] for word in WORDS if word != (1, 2)])
    assert tree.node_tokens == ()
    assert set(tree.edge_states) == {0}
    assert tree.sees().shape == (0, 0)


def test_a_node_sees_the_prompt_itself_and_what_is_above_it():
    tree = PhraseTree.of(WORDS)
    assert tree.sees().int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    mask = packed_mask(torch.tensor([[0, 1, 1], [1, 1, 1]]), tree.sees())
    assert mask.shape == (2, 1, 6, 6)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],  # padding sees itself, or it would divide by zero
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 1, 1, 0, 0, 1],
    ]
    assert mask[1, 0, 4].int().tolist() == [1, 1, 1, 1, 1, 0]


def test_nodes_stand_where_they_would_stand_alone():
    positions = torch.tensor([[[0, 1, 2], [0, 0, 1]], [[0, 5, 6], [0, 0, 3]]])
    depths = torch.tensor(PhraseTree.of(WORDS).node_depths)
    packed = packed_positions(positions, depths)
    assert packed[0].tolist() == [[0, 1, 2, 3, 4, 3], [0, 0, 1, 2, 3, 2]]
    assert packed[1, 0].tolist() == [0, 5, 6, 7, 8, 7]
