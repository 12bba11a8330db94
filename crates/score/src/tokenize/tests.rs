use proptest::prelude::*;

use super::*;

/// What the Java program and the removal of punctuation give.
const KNOWN: &[(&str, &str)] = &[
    ("A black-and-white cat's toy.", "a black-and-white cat 's toy"),
    ("Don't! It's the dogs' ball, isn't it?", "do n't it 's the dogs ball is n't it"),
    ("I’d’ve said “no”", "i 'd 've said no"),
    ("They can't; we cannot, gonna", "they ca n't we can not gon na"),
    ("six o'clock, O'Brien's d'Angelo ma'am", "six o'clock o'brien 's d'angelo ma'am"),
    ("rock 'n' roll, fish'n chips, get 'em in the '90s", "rock 'n' roll fish 'n chips get 'em in the '90s"),
    ("'twas y'all", "'t was y' all"),
    ("Mr. Smith in the U.S. near St. Mary's, etc.", "mr. smith in the u.s. near st. mary 's etc."),
    ("no. 5, No.1, no.", "no. 5 no. 1 no"),
    (
        "1,000th 3.5mm 10:30 5:30pm 5pm 1/2 ½ 5' 3\" .5 -5",
        "1,000 th 3.5 mm 10:30 5:30 pm 5pm 1/2 1/2 5 3 .5 -5",
    ),
    ("twelve o’clock ** 5:30-6:00", "twelve o’clock ** 5:30 -6:00"),
    ("$5 10% #1 @home #tag a/b w/ £5 20°C", "$ 5 10 % # 1 @home #tag a/b w / # 5 20 ° c"),
    ("(blood type) [a] {b}", "-lrb- blood type -rrb- -lsb- a -rsb- -lcb- b -rcb-"),
    ("wait... what?! yes!! no! a...b man…dog", "wait what ?! yes !! no a. b man dog"),
    ("AT&T R&B black&white &amp; M&M's", "at&t r&b black & white & m&m 's"),
    ("two -- three — four – five-six a--b", "two three four five-six a b"),
    ("street.A man stands. IT'S", "street.a man stands it 's"),
    ("café naïve 猫 ❤️ 😀 smile", "café naïve 猫 ❤ smile"),
    ("C. D. v1.0 2+2=4 under_score 1980's", "c. d. v1 .0 2 +2 = 4 under_score 1980 's"),
    ("a car wash. an ill man, a mass. of tex.", "a car wash an ill man a mass of tex"),
    ("Wash. Mass. TEX. Miss. La. Del. Mt. Fuji", "wash. mass. tex. miss. la. del. mt. fuji"),
    ("no. nos. 5 No.1 fig.2 prop. dog ca. 5 no.  5", "no nos. 5 no. 1 fig. 2 prop dog ca. 5 no 5"),
    ("a dog., a café.; 5.: 3.5., and/or., it's., cannot., x", "a dog. a café. 5. 3.5 and/or it 's cannot. x"),
    ("vitamin C. The dog. Plan B. NOW or D. Then", "vitamin c the dog plan b now or d then"),
    ("vitamin C. the U.S. The Mr. A St. It", "vitamin c. the u.s. the mr. a st. it"),
    ("vitamin C. Theo, C. The-end, C. Dogs, C. The", "vitamin c. theo c. the-end c. dogs c the"),
    ("C++, c# and F# R+D, U+D800 M&Ms AT&amp;T US$5", "c++ c# and f# r+d u+d 800 m&m s at&t us$ 5"),
    ("1 1/2 cups, 2-1/2, 12345 1/2, ⅓", "1\u{a0}1/2 cups 2-1/2 12345 1/2 1/3"),
    ("(555) 555-1234, 100 200 3000, 640 480", "-lrb-555-rrb-\u{a0}555-1234 100\u{a0}200\u{a0}3000 640 480"),
    ("2:1:1 4:30:20pm 1.5-2.5 1999-2000,2002", "2:1:1 4:30:20 pm 1.5-2 .5 1999-2000 ,2002"),
    ("1.txt a1.c v1.0.x v1.0 pre-9/11 U.S.-based", "1.txt a1.c v1.0.x v1 .0 pre-9 / 11 u.s.-based"),
    ("dog?cat yes!no ok? a ----- b ---- c", "dog?cat yes!no ok a ----- b c"),
    ("_x_ __init__ snake_case 3.5-inch a/b/c/d", "_ x _ __ init __ snake_case 3.5-inch a/b/c / d"),
    ("Hawai'i J'adore n'est d'été l'a c'est ol' man", "hawai'i j'adore n'est d'été l' a c'est ol' man"),
    ("\u{feff}a soft\u{ad}hyphen\u{ad} a\u{ad}-b", "a softhyphen a-b"),
    ("it''s a dog...5 'tis 't Plan B. Mr. X hawai'i., x", "it s a dog 5 't is t plan b mr. x hawai'i x"),
    ("the-don't don't5 5can't it's300", "the-don t do n't 5 5can t it 's 300"),
    ("me@home.com tell'em fish 'n, more'n. y's", "me@home.com tell 'em fish n more n. y 's"),
];

#[test]
fn agrees_with_the_java_program() {
    for (caption, tokens) in KNOWN {
        assert_eq!(tokenize(caption).join(" "), *tokens, "{caption}");
    }
}

#[test]
fn a_caption_is_read_beside_the_next_one_only_as_one_text() {
    let captions =
        ["Plan B.", "The dog", "no.", "5\ndogs", "Plan B.", "", "A cat", "Plan B.", "Dogs", "B.", "The"];
    let joined = |tokens: &Tokens| tokens.join(" ");
    let together: Vec<String> = tokenize_as_one_text(&captions).iter().map(joined).collect();
    let in_java =
        ["plan b", "the dog", "no.", "5 dogs", "plan b", "", "a cat", "plan b.", "dogs", "b.", "the"];
    assert_eq!(together, in_java);
    let alone = captions.map(|caption| joined(&tokenize(caption)));
    assert_eq!(alone[..5], ["plan b.", "the dog", "no", "5 dogs", "plan b."]);
}

proptest! {
    #[test]
    fn any_text_gives_words(text in "[ -~\\PC]{0,60}") {
        for token in tokenize(&text) {
            let has_blank = token.contains(|c: char| c.is_whitespace() && c != '\u{a0}');
            prop_assert!(!token.is_empty() && !has_blank, "{:?}", token);
            prop_assert_eq!(&token.to_lowercase(), &token);
        }
    }

    #[test]
    fn captions_that_end_without_a_full_stop_are_read_as_alone(
        captions in proptest::collection::vec("[ -~\\PC]{0,20}", 0..5),
    ) {
        let captions: Vec<String> = captions.iter().map(|caption| format!("{caption} x")).collect();
        let together = tokenize_as_one_text(&captions.iter().map(String::as_str).collect::<Vec<_>>());
        let alone: Vec<Tokens> = captions.iter().map(|caption| tokenize(caption)).collect();
        prop_assert_eq!(together, alone);
    }

    #[test]
    fn plain_words_are_kept(words in proptest::collection::vec("[bcdfghjklm]{2,6}", 0..8)) {
        prop_assume!(!words.iter().any(|word| word == "gimme"));
        prop_assert_eq!(tokenize(&words.join(" ")), words);
    }
}
