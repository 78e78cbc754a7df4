"""Which cells can start is what asking every one of them, every time, would say."""

from hypothesis import given
from hypothesis import strategies as st

from normstab.experiment.execution.waiting import WaitingCells
from tests.experiment.fake_cells import cell


def made(links):
    """Cells of which the n-th depends on the earlier ones that links[n] names, and on `outside` for -1."""
    cells = []
    for number, wanted in enumerate(links):
        names = [cells[n % number].id for n in wanted if n >= 0 and number]
        names += ["outside"] if -1 in wanted else []
        cells.append(cell(number=number, depends_on=tuple(dict.fromkeys(names))))
    return cells


@given(
    st.lists(st.lists(st.integers(-1, 20), max_size=3), min_size=1, max_size=15),
    st.data(),
    st.booleans(),
)
def test_cells_start_in_order_as_those_they_need_end(links, data, is_there):
    cells = made(links)
    waiting = WaitingCells(cells, reused=(), has_record=lambda name: is_there and name == "outside")
    fate, left = {"outside": is_there}, list(cells)
    while left:
        # The plain way: the first cell whose needs all have a record; lost are those with a need that has none.
        doomed = [one for one in left if any(fate.get(name) is False for name in one.depends_on)]
        while any(fate.get(one.id) is None for one in doomed):
            fate.update({one.id: False for one in doomed})
            doomed = [one for one in left if any(fate.get(name) is False for name in one.depends_on)]
        assert [one for one, _ in waiting.lost()] == doomed
        left = [one for one in left if one not in doomed]
        ready = [one for one in left if all(fate.get(name) for name in one.depends_on)]
        assert waiting.first_ready() == (ready[0] if ready else None)
        assert len(waiting) == len(left)
        if ready:
            waiting.start_first()
            left.remove(ready[0])
            fate[ready[0].id] = data.draw(st.booleans())
            note = waiting.note_record if fate[ready[0].id] else waiting.note_failure
            note(ready[0].id)
    assert waiting.first_ready() is None and len(waiting) == 0


def test_a_record_outside_is_looked_for_once():
    asked = []
    cells = [cell(number=n, depends_on=("outside", "reused")) for n in range(5)]
    waiting = WaitingCells(cells, reused={"reused"}, has_record=lambda name: not asked.append(name))
    assert asked == ["outside"] and waiting.first_ready() == cells[0]
