import time

from image_classifier.training.timing import ADVICE, COMPUTE, EVALUATION, READING, Stopwatch


def test_phases_add_up():
    clock = Stopwatch()
    for _ in range(2):
        with clock(COMPUTE):
            time.sleep(0.01)

    def slow():
        for number in range(3):
            time.sleep(0.005)
            yield number

    assert list(clock.each(READING, slow())) == [0, 1, 2]
    clock.images = 10
    assert clock.seconds[COMPUTE] >= 0.02 and clock.seconds[READING] >= 0.015
    assert clock.rate() == 10 / (clock.seconds[COMPUTE] + clock.seconds[READING])


def test_the_table_advises_where_compute_does_not_dominate():
    clock = Stopwatch()
    clock.images = 100
    clock.seconds |= {COMPUTE: 8.0, READING: 0.1, EVALUATION: 1.9}
    assert "80.0%" in clock.table() and "12.3 images/s" in clock.table() and "advice" not in clock.table()
    clock.seconds[READING] = 4.0
    assert "advice" not in clock.table()  # of seconds
    clock.seconds |= {COMPUTE: 80.0, READING: 40.0, EVALUATION: 19.0}
    assert f"advice: {ADVICE[READING][1]}" in clock.table()


def test_nothing_done_is_a_table_too():
    assert "0.0 images/s" in Stopwatch().table()
