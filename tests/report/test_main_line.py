from saematch.report.style import main_line


def row(path, step, source, target, path_weight):
    return {"path": path, "step": step, "source_feature": source, "target_feature": target,
            "path_weight": path_weight}  # fmt: skip


def test_the_line_of_a_path_follows_what_carries_most():
    rows = [
        row(0, 0, 7, 1, 0.4),
        row(0, 0, 7, 2, -0.6),
        row(1, 0, 3, 3, 1.0),
        row(0, 1, 1, 5, 0.9),  # leaves another feature than the line ended in
        row(0, 1, 2, 6, 0.3),
        row(1, 1, 4, 4, 1.0),
        row(0, 2, 6, 6, 0.3),
    ]
    assert main_line(rows) == [rows[1], rows[2], rows[4], rows[6]]


def test_the_rows_of_one_partner_a_feature_are_the_line():
    rows = [row(path, step, path, path, 1.0) for step in range(3) for path in range(2)]
    assert main_line(rows) == rows
