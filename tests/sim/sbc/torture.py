# ruff: noqa: E501 - long lines are part of what is tested
"""The torture test messages of RFC 4475, by their names there, moved into our world: to Bob and to our domain
where the document has its own, from Mallory, who is registered. What makes each of them torture is as it was."""

from __future__ import annotations

from typing import Final, NamedTuple


class Torture(NamedTuple):
    """One message, and what becomes of it.

    Attributes:
        section: of RFC 4475. codes: final answers to it (of the SBC, or of Bob's phone, which is busy). event: what
            the SBC notes where it refuses or drops. reaches: whether Bob's phone sees it.
    """

    section: str
    data: bytes
    codes: tuple[int, ...]
    event: str = ""
    reaches: bool = False


def wire(text: str) -> bytes:
    """Lines as they go over the wire, without the first line break."""
    return text.lstrip("\n").replace("\n", "\r\n").encode()


LONG: Final = "a" * 38 + "really" * 28 + "long"

_SDP = """
v=0
o=mhandley 29739 7272939 IN IP4 10.64.0.66
s=-
c=IN IP4 10.64.0.66
t=0 0
m=audio 49217 RTP/AVP 0 12
m=video 3227 RTP/AVP 31
a=rtpmap:31 LPC
""".lstrip()
_SDP_LENGTH = len(wire(_SDP))

VALID: Final = {
    "wsinv": Torture(
        "3.1.1.1",
        wire(
            f"""
INVITE sip:bob@example.org;unknownparam SIP/2.0
TO :
 sip:bob@example.org ;   tag    = 1918181833n
from   : "J Rosenberg \\\\\\""       <sip:mallory@example.org>
  ;
  tag = 98asjd8
MaX-fOrWaRdS: 0068
Call-ID: wsinv.ndaksdj@192.0.2.1
Content-Length   : {_SDP_LENGTH}
cseq: 0009
  INVITE
Via  : SIP  /   2.0
 /UDP
    10.64.0.66;branch=390skdjuw
s :
NewFangledHeader:   newfangled value
 continued newfangled value
UnknownHeaderWithUnusualValue: ;;,,;;,;
Content-Type: application/sdp
Route:
 <sip:10.64.0.1;lr;unknownwith=value;unknown-no-value>
v:  SIP  / 2.0  / TCP     spindle.example.com   ;
  branch  =   z9hG4bK9ikj8  ,
 SIP  /    2.0   / UDP  192.168.255.111   ; branch=
 z9hG4bK30239
m:"Quoted string \\"\\"" <sip:mallory@10.64.0.66> ; newparam =
      newvalue ;
  secondparam ; q = 0.33

{_SDP}"""
        ),
        (486,),
        reaches=True,
    ),
    "intmeth": Torture(
        "3.1.1.2",
        wire(
            """
!interesting-Method0123456789_*+`.%indeed'~ sip:bob@example.org SIP/2.0
Via: SIP/2.0/UDP 10.64.0.66;branch=z9hG4bK-.!%66*_+`'~
To: "BEL:\\a NUL:\\b DEL:\\c" <sip:bob@example.org>
From: token1~` token2'+_ token3*%!.- <sip:mallory@example.org:5060>;fromParam''~+*_!.-%="\\o\\p";tag=_token~1'+`*%!-.
Call-ID: intmeth.word%ZK-!.*_+'@word`~)(><:\\/"][?}{
CSeq: 139122385 !interesting-Method0123456789_*+`.%indeed'~
Max-Forwards: 255
extensionHeader-!.%*+_`'~: \ufeff大停電
Content-Length: 0

"""
        ),
        (200,),
        reaches=True,
    ),
    "esc01": Torture(
        "3.1.1.3",
        wire(
            """
INVITE sip:sips%3Auser%40example.com@example.org SIP/2.0
To: sip:%75se%72@example.org
From: <sip:mallory@example.org>;tag=938
Max-Forwards: 87
i: esc01.239409asdfakjkn23onasd0-3234
CSeq: 234234 INVITE
Via: SIP/2.0/UDP 10.64.0.66:5060;branch=z9hG4bKkdjuw
C: application/sdp
Contact:
  <sip:cal%6Cer@10.64.0.66:5060;%6C%72;n%61me=v%61lue%25%34%31>
l: 0

"""
        ),
        (404,),
        "unknown-user",
    ),
    "escnull": Torture(
        "3.1.1.4",
        wire(
            """
REGISTER sip:example.org SIP/2.0
To: sip:null-%00-null@example.org
From: sip:null-%00-null@example.org;tag=839923423
Max-Forwards: 70
Call-ID: escnull.39203ndfvkjdasfkq3w4otrq0adsfdfnavd
CSeq: 14398234 REGISTER
Via: SIP/2.0/UDP 10.64.0.66:5060;rport;branch=z9hG4bKkdjuw
Contact: <sip:%00@10.64.0.66:5060>
Contact: <sip:%00%00@10.64.0.66:5060>
L:0

"""
        ),
        (403,),
        "register-foreign-name",
    ),
    "esc02": Torture(
        "3.1.1.5",
        wire(
            """
RE%47IST%45R sip:bob@example.org SIP/2.0
To: "%Z%45" <sip:bob@example.org>
From: "%Z%45" <sip:mallory@example.org>;tag=f232jadfj23
Call-ID: esc02.asdfnqwo34rq23i34jrjasdcnl23nrlknsdf
Via: SIP/2.0/UDP 10.64.0.66:5060;rport;branch=z9hG4bK209%fzsnel234
CSeq: 29344 RE%47IST%45R
Max-Forwards: 70
Contact: <sip:alias1@host1.example.com>
C%6Fntact: <sip:alias2@host2.example.com>
Contact: <sip:alias3@host3.example.com>
l: 0

"""
        ),
        (200,),
        reaches=True,
    ),
    "lwsdisp": Torture(
        "3.1.1.6",
        wire(
            """
OPTIONS sip:bob@example.org SIP/2.0
To: sip:bob@example.org
From: caller<sip:mallory@example.org>;tag=323
Max-Forwards: 70
Call-ID: lwsdisp.1234abcd@funky.example.com
CSeq: 60 OPTIONS
Via: SIP/2.0/UDP 10.64.0.66:5060;branch=z9hG4bKkdjuw
l: 0

"""
        ),
        (200,),
        reaches=True,
    ),
    "longreq": Torture(
        "3.1.1.7",
        wire(
            f"""
MESSAGE sip:bob@example.org SIP/2.0
To: "I have a user name of extreme{"e" * 300} proportion" <sip:bob@example.org:5060;unknownparam1=very{LONG}value;longparam{LONG}name=shortvalue>
F: sip:mallory@example.org;tag=12{"982" * 50}424;unknownheaderparam{LONG}name=unknown{LONG}value
Call-ID: longreq.one{"really" * 20}longcallid
CSeq: 3882340 MESSAGE
Unknown-{LONG}-Name: unknown-{LONG}-value
Via: SIP/2.0/UDP 10.64.0.66:5060;branch=z9hG4bK{LONG},
 SIP/2.0/TCP host{LONG}.example.com:5060;branch=z9hG4bK{LONG},
 {", ".join(f"SIP/2.0/UDP host{number}.example.com" for number in range(60))}
Max-Forwards: 70
Content-Length: 0

"""
        ),
        (200,),
        reaches=True,
    ),
    "dblreq": Torture(
        "3.1.1.8",
        wire(
            """
REGISTER sip:example.org SIP/2.0
To: sip:j.user@example.org
From: sip:j.user@example.org;tag=43251j3j324
Max-Forwards: 8
I: dblreq.0ha0isndaksdj99sdfafnl3lk233412
Contact: sip:j.user@host.example.com
CSeq: 8 REGISTER
Via: SIP/2.0/UDP 10.64.0.66:5060;branch=z9hG4bKkdjuw23492
Content-Length: 0


INVITE sip:bob@example.org SIP/2.0
To: sip:bob@example.org
From: sip:mallory@example.org;tag=141334
Max-Forwards: 8
Call-ID: dblreq.0ha0isnda977644900765@10.64.0.66
CSeq: 8 INVITE
Via: SIP/2.0/UDP 10.64.0.66;branch=z9hG4bKkdjuw380234
Contact: <sip:mallory@10.64.0.66>
Content-Length: 0

"""
        ),
        (403,),
        "register-foreign-name",
    ),
    "semiuri": Torture(
        "3.1.1.9",
        wire(
            """
OPTIONS sip:user;par=u%40example.net@example.org SIP/2.0
To: sip:j_user@example.org
From: sip:mallory@example.org;tag=33242
Max-Forwards: 3
Call-ID: semiuri.0ha0isndaksdj
CSeq: 8 OPTIONS
Accept: application/sdp, application/pkcs7-mime,
        multipart/mixed, multipart/signed,
        message/sip, message/sipfrag
Via: SIP/2.0/UDP 10.64.0.66;branch=z9hG4bKkdjuw
l: 0

"""
        ),
        (404,),
        "unknown-user",
    ),
    "transports": Torture(
        "3.1.1.10",
        wire(
            """
OPTIONS sip:bob@example.org SIP/2.0
To: sip:bob@example.org
From: <sip:mallory@example.org>;tag=323
Max-Forwards: 70
Call-ID:  transports.kijh4akdnaqjkwendsasfdj
Accept: application/sdp
CSeq: 60 OPTIONS
Via: SIP/2.0/UDP t1.example.com;branch=z9hG4bKkdjuw
Via: SIP/2.0/SCTP t2.example.com;branch=z9hG4bKklasjdhf
Via: SIP/2.0/TLS t3.example.com;branch=z9hG4bK2980unddj
Via: SIP/2.0/UNKNOWN t4.example.com;branch=z9hG4bKasd0f3en
Via: SIP/2.0/TCP t5.example.com;branch=z9hG4bK0a9idfnee
l: 0

"""
        ),
        (200,),
        reaches=True,
    ),
    "mpart01": Torture(
        "3.1.1.11",
        wire(
            """
MESSAGE sip:bob@example.org SIP/2.0
Via: SIP/2.0/UDP 10.64.0.66:5060;branch=z9hG4bK-d87543-4dade06d0bdb11ee-1--d87543-;rport
Max-Forwards: 70
Route: <sip:10.64.0.1:5060;lr>
To: "sip:bob@example.org" <sip:bob@example.org>
From: "Mallory" <sip:mallory@example.org>;tag=45c94b7e
Call-ID: mpart01.Nzc5OTk0NWRlYjA0
CSeq: 32127 MESSAGE
Content-Type: multipart/mixed;boundary=7a9cbec02ceef655
Content-Length: 71

--7a9cbec02ceef655
Content-Type: application/octet-stream

"""
        )
        + b"\x00\xff\x30\x82\x01\r\n\r\n",
        (200,),
        reaches=True,
    ),
    "unreason": Torture(
        "3.1.1.12",
        wire(
            """
SIP/2.0 200 = 2**3 * 5**2 но сто девяносто девять - простое
Via: SIP/2.0/UDP 10.64.0.1:5060;branch=z9hG4bK1324923
Call-ID: unreason.1234ksdfak3j2erwedfsASdf
CSeq: 35 INVITE
From: sip:user@example.com;tag=11141343
To: sip:user@example.edu;tag=2229
Content-Length: 0
Contact: <sip:user@host198.example.com>

"""
        ),
        (),
        "stray-response",
    ),
    "noreason": Torture(
        "3.1.1.13",
        wire(
            """
SIP/2.0 100\x20
Via: SIP/2.0/UDP 10.64.0.1:5060;branch=z9hG4bK2398ndaoe
Call-ID: noreason.asndj203insdf99223ndf
CSeq: 35 INVITE
From: <sip:user@example.com>;tag=39ansfi3
To: <sip:user@example.edu>;tag=902jndnke3
Content-Length: 0
Contact: <sip:user@host105.example.com>

"""
        ),
        (),
        "stray-response",
    ),
}


def odd(
    start: str,
    cseq: str,
    *,
    to: str = "sip:bob@example.org",
    from_: str = "sip:mallory@example.org;tag=242etr",
    via: str = "SIP/2.0/UDP 10.64.0.66;branch=z9hG4bKkdjuw",
    more: str = "",
    length: str = "l: 0",
    body: str = "",
) -> bytes:
    """A plain message but for what is given."""
    lines = [
        start,
        f"Via: {via}",
        f"To: {to}",
        f"From: {from_}",
        "Call-ID: odd.0ha0isndaksdj",
        f"CSeq: {cseq}",
    ]
    lines += [more] if more else []
    lines += [length] if length else []
    return wire("\n".join([*lines, "", body]))


INVITE, OPTIONS = "INVITE sip:bob@example.org SIP/2.0", "OPTIONS sip:bob@example.org SIP/2.0"
CONTACT = "Contact: <sip:mallory@10.64.0.66>\nMax-Forwards: 70"

INVALID: Final = {
    "badinv01": Torture(
        "3.1.2.1",
        odd(
            INVITE,
            "8 INVITE",
            via="SIP/2.0/UDP 10.64.0.66;;,;,,",
            more='Contact: "Joe" <sip:joe@example.org>;;;;',
        ),
        (),
        "sip-bad-parameters",
    ),
    "clerr": Torture("3.1.2.2", odd(INVITE, "8 INVITE", length="Content-Length: 9999", body=_SDP), (400,)),
    "ncl": Torture("3.1.2.3", odd(INVITE, "8 INVITE", length="Content-Length: -999"), (400,)),
    "scalar02": Torture(
        "3.1.2.4",
        odd(
            "REGISTER sip:example.org SIP/2.0",
            "36893488147419103232 REGISTER",
            more="Max-Forwards: 300\nExpires: 10000000000000000000000000000000\n"
            "Contact: <sip:user@host129.example.com>;expires=280297596632815",
        ),
        (400,),
        "sip-bad-cseq",
    ),
    "scalarlg": Torture(
        "3.1.2.5",
        odd(
            "SIP/2.0 503 Service Unavailable",
            "9292394834772304023312 OPTIONS",
            via="SIP/2.0/UDP 10.64.0.1:5060;branch=z9hG4bKzzxdiwo34sw",
            more='Retry-After: 949302838503028349304023988\nWarning: 1812 overture "In Progress"',
        ),
        (),
        "sip-bad-cseq",
    ),
    "quotbal": Torture("3.1.2.6", odd(INVITE, "8 INVITE", to='"Mr. J. User <sip:bob@example.org>'), (400,)),
    "ltgtruri": Torture("3.1.2.7", odd("INVITE <sip:bob@example.org> SIP/2.0", "1 INVITE"), (400,)),
    "lwsruri": Torture("3.1.2.8", odd("INVITE sip:bob@example.org; lws SIP/2.0", "1 INVITE"), (400,)),
    "lwsstart": Torture("3.1.2.9", odd("INVITE  sip:bob@example.org  SIP/2.0", "1 INVITE"), (400,)),
    "trws": Torture("3.1.2.10", odd("OPTIONS sip:bob@example.org SIP/2.0  ", "1 OPTIONS"), (400,)),
    "escruri": Torture(
        "3.1.2.11", odd("INVITE sip:bob@example.org?Route=%3Csip:example.com%3E SIP/2.0", "8 INVITE"), (400,)
    ),
    "baddate": Torture(
        "3.1.2.12",
        odd(OPTIONS, "8 OPTIONS", more="Date: Fri, 01 Jan 2010 16:00:00 EST"),
        (200,),
        reaches=True,
    ),
    "badaspec": Torture(
        "3.1.2.14",
        odd(OPTIONS, "39 OPTIONS", to='"Watson, Thomas" < sip:bob@example.org >'),
        (200,),
        reaches=True,
    ),
    "baddn": Torture(
        "3.1.2.15",
        odd(OPTIONS, "39 OPTIONS", from_="Bell, Alexander <sip:mallory@example.org>;tag=43"),
        (200,),
        reaches=True,
    ),
    "badvers": Torture("3.1.2.16", odd("OPTIONS sip:bob@example.org SIP/7.0", "1 OPTIONS"), (505,)),
    "mismatch01": Torture("3.1.2.17", odd(OPTIONS, "8 INVITE"), (400,), "sip-bad-cseq"),
    "mismatch02": Torture(
        "3.1.2.18", odd("NEWMETHOD sip:bob@example.org SIP/2.0", "8 INVITE"), (400,), "sip-bad-cseq"
    ),
    "bigcode": Torture(
        "3.1.2.19",
        odd("SIP/2.0 4294967301 better not break the receiver", "353494 INVITE"),
        (),
        "sip-bad-start-line",
    ),
}

TRANSACTION: Final = {
    "badbranch": Torture(
        "3.2.1", odd(OPTIONS, "8 OPTIONS", via="SIP/2.0/UDP 10.64.0.66;branch=z9hG4bK"), (200,), reaches=True
    ),
}

APPLICATION: Final = {
    "insuf": Torture(
        "3.3.1",
        wire(
            "INVITE sip:bob@example.org SIP/2.0\nCSeq: 193942 INVITE\n"
            "Via: SIP/2.0/UDP 10.64.0.66;branch=z9hG4bKkdj.insuf\nContent-Length: 0\n\n"
        ),
        (400,),
        "sip-missing-header",
    ),
    "unkscm": Torture(
        "3.3.2",
        odd("OPTIONS nobodyKnowsThisScheme:totallyopaquecontent SIP/2.0", "3923423 OPTIONS"),
        (416,),
        "unknown-scheme",
    ),
    "novelsc": Torture(
        "3.3.3",
        odd("OPTIONS soap.beep://192.0.2.103:3002 SIP/2.0", "3923423 OPTIONS"),
        (416,),
        "unknown-scheme",
    ),
    "unksm2": Torture(
        "3.3.4",
        odd(
            "REGISTER sip:example.org SIP/2.0",
            "234902 REGISTER",
            to="isbn:2983792873",
            from_="<http://www.example.com>;tag=3234233",
        ),
        (400,),
        "sip-bad-uri",
    ),
    "bext01": Torture(
        "3.3.5",
        odd(
            OPTIONS,
            "8 OPTIONS",
            more="Require: nothingSupportsThis, nothingSupportsThisEither\n"
            "Proxy-Require: noProxiesSupportThis, norDoAnyProxiesSupportThis",
        ),
        (420,),
        "bad-extension",
    ),
    "invut": Torture(
        "3.3.6",
        odd(
            "MESSAGE sip:bob@example.org SIP/2.0",
            "235448 MESSAGE",
            more="Content-Type: application/unknownformat",
            length="Content-Length: 40",
            body="<audio>\n <pcmu port='443'/>\n</audio>\n   ",
        ),
        (200,),
        reaches=True,
    ),
    "regaut01": Torture(
        "3.3.7",
        odd(
            "REGISTER sip:example.org SIP/2.0",
            "9338 REGISTER",
            to="sip:mallory@example.org",
            more="Authorization: NoOneKnowsThisScheme opaque-data=here",
        ),
        (401,),
        "register-challenged",
    ),
    "multi01": Torture(
        "3.3.8",
        odd(
            OPTIONS,
            "5 OPTIONS",
            more="Call-ID: multi01.98asdh@192.0.2.2\nCSeq: 59 OPTIONS\nFrom: sip:alice@example.org;tag=3415132\n"
            "Max-Forwards: 70\nMax-Forwards: 5\nTo: sip:carol@example.org",
        ),
        (400,),
        "sip-repeated-header",
    ),
    "mcl01": Torture(
        "3.3.9",
        odd(OPTIONS, "8 OPTIONS", length="Content-Length: 13\nContent-Length: 5", body="There's no way"),
        (400,),
        "sip-bad-content-length",
    ),
    "bcast": Torture(
        "3.3.10",
        odd(
            "SIP/2.0 200 OK",
            "35 INVITE",
            via="SIP/2.0/UDP 10.64.0.1:5060;branch=z9hG4bK1324923,"
            " SIP/2.0/UDP 255.255.255.255;branch=z9hG4bK1saber23",
        ),
        (),
        "stray-response",
    ),
    "zeromf": Torture("3.3.11", odd(OPTIONS, "39 OPTIONS", more="Max-Forwards: 0"), (483,), "too-many-hops"),
    "sdp01": Torture(
        "3.3.15",
        odd(
            "MESSAGE sip:bob@example.org SIP/2.0",
            "1 MESSAGE",
            more="Accept: text/nobodyKnowsThis\n" + CONTACT,
        ),
        (200,),
        reaches=True,
    ),
    "inv2543": Torture(
        "3.3.16",
        wire(
            f"""
INVITE sip:bob@example.org SIP/2.0
Via: SIP/2.0/UDP 10.64.0.66
From: <sip:mallory@example.org>
Record-Route: <sip:UserB@example.com;maddr=ss1.example.com>
To: sip:bob@example.org
Call-ID: inv2543.1717@ift.client.example.com
CSeq: 56 INVITE
Content-Type: application/sdp
Content-Length: {_SDP_LENGTH}

{_SDP}"""
        ),
        (486,),
        reaches=True,
    ),
}

REGISTRATIONS: Final = {
    "regbadct": ("3.1.2.13", "sip:user@example.org?Route=%3Csip:sip.example.com%3E", "400"),
    "cparam01": ("3.3.12", "sip:+19725552222@gw1.example.net;unknownparam", "200"),
    "cparam02": ("3.3.13", "<sip:+19725552222@gw1.example.net;unknownparam>", "200"),
    "regescrt": ("3.3.14", "<sip:user@10.64.0.66?Route=%3Csip:sip.example.com%3E>", "200"),
}
"""Contacts of a REGISTER with the right password: section, Contact, final answer."""

ALL: Final = VALID | INVALID | TRANSACTION | APPLICATION
