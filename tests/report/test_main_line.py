from saematch.core.tables import frame_of, rows_of
from saematch.report.frames import main_line


def row(path, step, source, target, path_weight):
    return {"path": path, "step": step, "source_feature": source, "target_feature": target,
            "path_weight": path_weight}  # fmt: skip


def test_the_line_of_a_path_follows_the_largest_weight():
    rows = [
        row(0, 0, 7, 1, 0.4),
        row(0, 0, 7, 2, -0.6),
        row(1, 0, 3, 3, 1.0),
        row(0, 1, 1, 5, 0.9),  # leaves a feature where the line does not end
        row(0, 1, 2, 6, 0.3),
        row(1, 1, 4, 4, 1.0),
        row(0, 2, 6, 6, 0.3),
    ]
    assert rows_of(main_line(frame_of(rows))) == [rows[1], rows[2], rows[4], rows[6]]


def test_with_one_partner_a_feature_every_row_is_in_the_line():
    rows = [row(path, step, path, path, 1.0) for step in range(3) for path in range(2)]
    assert rows_of(main_line(frame_of(rows))) == rows
