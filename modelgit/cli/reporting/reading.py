"""How to read the page's pictures and tables, a text for each."""


def told(text: str) -> str:
    """Returns a text on one line, in which no per cent sign is parted from its number."""
    return " ".join(text.split()).replace(" %", "\u00a0%")


LINEAGE = told("""
    Each box or dot is a version; lines lead from what it was made from. Several lines meet where models were averaged.
""")
SCORES = told("""
    Every dot is a version, in the order of the history; its number is in the table. Thin lines join a version to the
    nearest ones before it that were scored on the same data: look for lines that fall.
""")
INTERVALS = told("""
    Bars and brackets are 95 % intervals (Wilson): two versions whose intervals overlap widely may be equally good.
    Without brackets the note does not say how many examples an accuracy rests on.
""")
FORGETTING = told("""
    How far a version's accuracy on a data set is below the best of all versions that it descends from (Chaudhry et al.
    2018), in points. Above 0 something was lost on the way; below 0 it was improved upon.
""")
NOT_FORGOTTEN = told("""
    No version descends from another one scored on the same data, so nothing can be said to be forgotten.
""")
NO_SCORES = told("""
    No version has scores yet. A pipeline notes them (modelgit run); versions are compared with --on DATA.
""")
ACCURACY = told("""
    Bars are 95 % intervals (Wilson): where the accuracy on other examples of the same kind may lie.
""")
PAIRED = told("""
    All versions answer the same examples, so the difference of two is surer than their intervals suggest: it stands in
    the table of pairs, under Diversity.
""")
DOMAINS = told("""
    A good mean may hide a domain that fails. Each dot is the accuracy on one domain, with its 95 % interval. The worst
    group is the class in one domain that is answered worst, among those with ten examples or more.
""")
GAPS = told("""
    How much better the group served best fares than the one served worst: in accuracy; in how often one class is the
    answer (demographic parity); and in how often it is among examples of one class (equalised odds, Hardt et al. 2016).
    Brackets are bootstrap 95 % intervals over the things shown, of the two groups named: they were picked for being
    furthest apart, so a gap looks wider than it is, most of all where groups are many and small. Where all of a group
    are answered alike the bootstrap knows no doubt about it.
""")
PATHS = told("""
    Where no point lies below the straight line between the ends (linear mode connectivity), the two can be averaged; a
    valley is a barrier. The gap is the most that the path lacks, in points, with a bootstrap 95 % interval for that
    place; below 0 the path lies above what its ends promise.
""")
DIVERSITY = told("""
    Averaging gains by what its members do not have in common. q-diversity is 0 for two versions with the same errors
    and 1 for independent ones (at most 2); ratio-error counts different errors for each identical one; CKA compares
    what the heads are given: 1 for features that are alike up to rotation and scale.
""")
DIFFERENCE = told("""
    The last column is the first's accuracy less the second's, with a bootstrap 95 % interval over the things shown: an
    interval on one side of 0 tells them apart.
""")
GAINS = told("""
    The mean is one model at the cost of one. The ensemble, which it stands in for, averages the answers of k models, at
    k times the cost. Where the curve is flat, more of the same adds nothing.
""")
NO_LAW = told("""
    From three versions on a law in 1/k is fitted, which tells what more of them would bring.
""")
SAME_DATA = told("""
    The order was chosen on the same data, which flatters the first version a little.
""")
OTHER_DATA = told("""
    The order was chosen without looking at the held-out domain.
""")
CALIBRATION = told("""
    Examples are put together by how sure a version is of its answer. On the dashed line it is right as often as it is
    sure; below, it is overconfident. ECE is the mean distance from the line, weighted by examples (15 bins, Guo et al.
    2017): 0 is best. Its interval is a bootstrap's over the things shown; with few examples even a perfectly calibrated
    version has an ECE above 0.
""")
