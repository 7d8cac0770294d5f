"""Networks and results pickle, and pickles that are older than the room's folders still load."""

import base64
import pickle
import subprocess
import sys
import zlib

import numpy as np
import pytest

import fastderiv as fd

# Written by the last version before line/, plane/ and space/: a network, one with feature names,
# and what every function of the room returns for them, with two exponential sums.
OLD = (
    "c-rk4X;@QNHVd){V$i~fwjv`cint(UahV6AWiYY`I<*wVBm{XB6U>63Rl$}`qvG&DaYKt06!)>zW#oYEr+^eU6j@"
    "%vu83ODh=>Zk$xA4*_M6{xzwhO|d(V2$a?gE<)=3#<LQ{`bgtcs3Fh?v2;*0Qz8C;=M5X2Eh%?K3mB^!jIZwT3NK"
    "YZ;vAs*zp)Q3nWWM%^Cx^RT&2}S%F>!e{4oFfu(q6nE$poq^C3d9nTlqXS94pUPSGCh?<6-hF|ro|F&bS@E3_!8D"
    "^I-9{}#t|WUvSC4zsBpfDi4p8XBqmUJri?zH@bdCn(uIclhfR|Z+(frol<h4T1!*o6sK$Ch(9#izEkrlOK&3y#P^"
    "+D();>DX?VlgZYk@iHalc#s{xsDn@5WQ}%NPX<F)h7H4-(l|Q><Fg7>ztyZ~g)7`-n@cwNPsnjnWo}s6*&7-9Q0n"
    "9X|;9&^m<KR~AFN*Z=#jhwo%`4tluAhZ4jmGw-hu#KN!$J|Q!36A8s)T(DM*Ts$>~K!wv+s}7p5WDLAV4u^cwUj|"
    "Rm+CkSqh6XZw*f;R5?9T|AVw~l0-h0Ee?DaK}{7IIfQ6ve2bKTN#E%BkaoJ{`;SNds+%SEHBZS+uF$OGKjJ*)WJe"
    "yf;Cr_%=(67eSio6hI<9~+TSC=nAfLtg}a`C@b$iPZ(rM<SitjQ+~A)MonEOQ-Y>WR?o;kA&zB8Y3;0UJoh>5kts"
    "6>u(3RK*ASAaKg|oOcwEZxEL1-Ji6Bg&NL>arMoJ0G*E9)+w>?mIBBY)tHU+^(mk7YScd0&*=9F`Hm|gJ8~4pmqs"
    "p0iirh*1+m}6n!KDr%ZEJ67+Vz2@q8&Q*t`O~fpbDZ5>H!87V#Yu*)}!!xbZV%GQ1VUeFLXTgh5{AL;Yp<G0FHF)"
    "wbE}YGAM7cPUJ<@4!b3XIVU>)=4@l=GO)cW>V#y0RnERzNE^x7lD@}a2x^0TN_Jt^Uy<#pu_S#+OHgI6aO`!qu|H"
    "+&u=Ujy?IcBh7oZ16&wBKz=6p>&2Ez@k5oG|YcZC19$bO7hSL6T}AC8DGmY|D|7xlIr=MNsqq_=C0o}47X(AB;)<"
    "`LD&+_Bogr*Sdq``zbnbK80+BIkv>HZc>}j0ClMi+<Y;Um(UMcmys%S0`hn+pot$GBH?Z-@0S&L7n-9Sjr~mwUU;"
    "6j8*V`Sb<-xrp{>5y&!F<&TiAj9PWDV0cfDMcSf7Hy=ObVy#pH9z0Q_*Wv#tj2^!eFK2&Fq{QP8n<j)nbbJ?}cDV"
    "_I#HR^!Qw?yg?o&BZz(cHFq&p-o*)TV6#nYzJg-f0=?vn*Z}hJHJXM8x5tu5Y|hv*IQdMex-Xy{aGC9&Co%XA6_i"
    "IehbO?w5A?jas+6*e%veoxh|J-kV#V6TRxhc1+JqswiuK_Da_^4UHc#`4c;=9d7{TAuelW#e2-lWbVRfS_8BMewS"
    "DD+dIt1>*AP>1N9JBdakDFdI#q3(`=S8uO2@0kTVP}y~XSVtPGx_4lZ6Zw6Z?kj$NHa{x~td4wl$CFLwXo4R+IS<"
    "_PaOb+GX(aoMP}Htg%dMe_M|wU8Zs8kg^Wjb$gWAD5=qLRIGDcPHYMSUoFCr^~YzjBZ=*l5T#5*{&R)z%r<Xhgl("
    "eo=ab1rRC4kqi)u~(QRi5zMvJ`a;o`@iHS837SOhr3~s>|V}^IzJkdOCqeFJ?3(R~j_lkpA4LHPFS|~3(!zN3E9)"
    ";GR3+CYhy#<+1v0umUo3-U^H5BCtTVfA9!B*ebbqk2D2I96^dCBfZEGbg<Z^z};u*b73BRswy%ZuH5?DVv1*mY~K"
    "VAR%Htkv?aBAZzaJ3Ll8UyP{6t_P*?U2+w`+C5wUR8<xB1!F?V>WvBzt!UsJz4r*KdK=+wI!^(m<I=9C7L;OG?9M"
    "Z8GzB=+E;W_q-oc7@`4<%x%3;<rx}1R*Vm?#0L{;sTLy@S&d>J<%n{s(mN+&Ld0&B<YfBbv_b3Go=Wa=V^>cAal<"
    "zBHE<Fm0`{jqX5a@6`3>*h%i&vrCUWyoQ~-q-pT(=Wjs^Sjw4&q(-DVDr#_V?Ja~HL}lsM8dBoRa1`3Z@|F?GfAr"
    "(B-CD%MYS$0h8s>-rainy!dG9P;3>;Wpw8<Wqy8rnp3v%!Z_2p?g&$V`<ave!tL3fZKG5y~r0AxO$|PY;W>?Y{_I"
    ";RqNJ*F`Bl$7^c`9}-gGtM?7Wr=@!8%~=BHXbOa`ckExh)|<<}mK?YFh;;Tt>D8g_01NfbwBa4KV*(oMXx(LCVUy"
    "!A`6LS8mx0SWSXxAIgX52H18c!uZQoBnT%=4cHy|7!K)&?z@ffVOdR+XNNa|#{=gzDt?DsNh3D~H3L0IU~hrscRh"
    "D(zrON0v=(F6>%}A#uoTsXp1;GC8?ql(N0U%!{!7rwBP~!cfBc&@yGYphsq1au#8#L^^XNQ#n1pE-;QVg=OGq&KC"
    "C~jl2^E$Lj%E12>h|9btE<LK-IPE)^sYR1lZ4~6?=#2wDPiKIX|YoZNyw{O>e9?r!uI0r6{m_2|0UD%D<UN{+hCR"
    "U#Uv;R`TFhKl(6CI^-0nO<lp=;I{%7#4R%NNk6l2Q!;0s=sg~hw(4oJlXuE|R;>>qiKM#HbuXAcD0#H8WEWUZ=(y"
    "De)gg$8(@#L@+l$B+^Z(*iGV+J!(4z*5y|Ip^%0ZpU7>oh(uhsX=w<INVl16z~w<djM|jGVq1``qq5jJ8XObk|pa"
    "(W^thXHNP6dt*{f1da;Ozml6i*1Quqn-Z&s;|kD;QF!k(>H@2okZEy9p*?@{R0kbr;LEPM4J7o%(@<w&#H-KDKku"
    "+(`#UT7k>O(LI&@erjtmzH_yP&e3G+h>>f7sP!dj-I`Zs|Hv6T%A4Cmk?LM0o0e2qX?D1LA-&chLpnDCNvLzkdlP"
    "cemhqSp}HP%i`!Jw1*H^--<#u~VNq*Ik0ugW+PY`JSZajo5F+s-XmGo#}E=^F2y^5jJVQKVPZ)ft1Ui@dsSI(|`"
)


def same(a, b):
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, fd.ExponentialSum):
        return same(a.coefficients, b.coefficients)
    if hasattr(a, "__dataclass_fields__"):
        return all(same(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)
    return a == b or (a != a and b != b)


def everything():
    weights = [
        [[1.0, 2.0, 0.5], [0.5, -0.5, 1.0]],
        [[1.0, -1.0, 0.3], [2.0, 0.4, -1.0], [0.1, 0.2, 0.3]],
    ]
    net = fd.SigmoidMLP(weights, [[0.0, 0.1, 0.2], [-1.0, 0.2, 0.0]])
    x_other = [0.0, 1.0, -1.0]
    ties = fd.solve_x1(net, x_other)
    row = int(np.searchsorted(ties.indptr, 0, side="right")) - 1
    tie = np.array([ties.x[0], x_other[row]])
    sums = fd.ExponentialSum(net, (0, 2)), fd.ExponentialSum(net, (0, 1))
    assert sums[1].coefficients.shape == (8,)
    return [
        net,
        ties,
        fd.find_x1(net, [tie[1]], (tie[0] - 0.1, tie[0] + 0.1)),
        fd.decision_intervals(net, x_other[:2]),
        fd.counterfactuals(net, [0.1, 0.2]),
        fd.nearest_tie(net, [0.1, 0.2]),
        fd.tie_sensitivity(net, tie),
        fd.trace_boundary(net, ((-2, 2), (-2, 2))),
        *sums,
    ]


def close(a, b):
    """Equal but for the last digits, which the machine may decide."""
    if isinstance(a, np.ndarray) and a.dtype.kind == "f":
        return a.shape == b.shape and np.allclose(a, b, rtol=1e-9, atol=1e-12, equal_nan=True)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(close, a, b))
    if hasattr(a, "__dataclass_fields__"):
        return all(close(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)
    return isinstance(a, float) or same(a, b)


def test_everything_pickles():
    things = everything()
    assert all(map(same, things, pickle.loads(pickle.dumps(things))))


def test_pickles_that_are_older_than_the_folders_load():
    net, named, *results = pickle.loads(zlib.decompress(base64.b85decode(OLD)))
    expected, roots, was = everything(), 2, [net, *results]
    expected[roots], was[roots] = expected[roots].x, was[roots].x  # steps are SciPy's affair
    assert close(was, expected)
    assert all(map(same, results, pickle.loads(pickle.dumps(results))))
    with pytest.raises(ValueError, match="other columns than the model was fitted with"):
        pandas = pytest.importorskip("pandas")
        named.logits(pandas.DataFrame([[0.0, 1.0]], columns=["b", "a"]))


def test_old_pickles_load_where_nothing_was_imported_before():
    script = (
        "import base64, pickle, sys, zlib\n"
        "things = pickle.loads(zlib.decompress(base64.b85decode(sys.argv[1])))\n"
        "print(*(type(thing).__name__ for thing in things))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, OLD], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == [
        "SigmoidMLP", "SigmoidMLP", "Crossings", "RootResults", "DecisionIntervals",
        "Counterfactuals", "NearestTie", "TieSensitivity", "BoundaryCurves", "ExponentialSum",
        "ExponentialSum",
    ]  # fmt: skip
