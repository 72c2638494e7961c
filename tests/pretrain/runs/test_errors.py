import pytest

from pretrain.runs.errors import number_of


@pytest.mark.parametrize(
    ('count', 'things', 'said'),
    [
        (1, 'unknown classes', '1 unknown class'),
        (1, 'unknown class ids', '1 unknown class id'),
        (1, 'boxes outside the image', '1 box outside the image'),
        (1, 'processes', '1 process'),
        (1, 'GPUs', '1 GPU'),
        (1, 'tensors that the model has are missing', '1 tensor that the model has is missing'),
        (1, 'tensors have another shape', '1 tensor has another shape'),
        (1, 'truncated', '1 truncated'),
        (0, 'files', '0 files'),
        (5011, 'names given twice', '5,011 names given twice'),
    ],
)
def test_a_noun_agrees_with_its_number(count: int, things: str, said: str) -> None:
    assert number_of(count, things) == said
