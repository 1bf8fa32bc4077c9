//! What the benchmarks ask. All of it was written for them.

/// Questions for answers of a paragraph or more.
const QUESTIONS: [&str; 12] = [
    "Explain in a few paragraphs how a program can keep serving while one of its parts crashes.",
    "Describe how a lighthouse works, from the lamp to the sailor who sees it.",
    "Write a short story about a clock maker who repairs a clock that runs backwards.",
    "What happens between pressing a key and seeing the letter on the screen?",
    "Give step-by-step instructions for planting a small herb garden on a balcony.",
    "Compare travelling by night train with flying, for a distance of a thousand kilometres.",
    "Why does bread rise, and what goes wrong when it does not?",
    "Explain binary search to a ten-year-old, then give the code.",
    "List the things to check before a long bicycle tour and say why each matters.",
    "Describe the life of a river from its spring to the sea.",
    "How would you organise a library of ten thousand books without a computer?",
    "Tell what makes a good explanation, and show one.",
];

/// Questions for answers of a few words.
const SHORT_QUESTIONS: [&str; 10] = [
    "Name three primary colours.",
    "How many legs has a spider?",
    "Which planet is nearest to the sun?",
    "Finish the row: two, four, eight,",
    "What do bees make?",
    "Which month comes after June?",
    "Name a river in Europe.",
    "What is frozen water called?",
    "How many minutes has an hour?",
    "Name the opposite of north.",
];

/// What long prompts are made of.
const SENTENCES: [&str; 8] = [
    "The harbour master writes down every ship that comes in and every ship that leaves.",
    "A message is kept until the one it was meant for has said that it arrived.",
    "When the wind turns, the ferries wait, and the people on the quay drink their coffee.",
    "No more than twelve boats lie at the long pier, and the thirteenth is told so at once.",
    "Each of the three cranes has a number, a driver, and a book with its repairs.",
    "If a lamp goes out, the next one is lit before anybody looks for the fault.",
    "The tide table hangs beside the door, and a copy of it hangs in every office.",
    "What is written in pencil may be changed, what is written in ink is only crossed out.",
];

/// The question with this number; they come round.
pub fn question(number: usize) -> &'static str {
    QUESTIONS[number % QUESTIONS.len()]
}

/// The short question with this number; they come round.
pub fn short_question(number: usize) -> &'static str {
    SHORT_QUESTIONS[number % SHORT_QUESTIONS.len()]
}

/// A text of so many words that begins as no other number's text does.
pub fn text(number: usize, words: usize) -> String {
    let sentences = (0..).map(|at| SENTENCES[(number * 3 + at * (number % 5 + 1) + at / 8) % 8]);
    let opening = format!("Record {number}.");
    let mut taken = Vec::with_capacity(words);
    let all = std::iter::once(opening.as_str()).chain(sentences);
    for word in all.flat_map(str::split_whitespace) {
        if taken.len() >= words {
            break;
        }
        taken.push(word);
    }
    taken.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_their_length_and_begin_differently() {
        for number in 0..20 {
            assert_eq!(text(number, 120).split(' ').count(), 120);
        }
        assert_ne!(text(1, 20), text(2, 20));
        assert!(text(1, 120).starts_with(&text(1, 20)));
        assert_eq!(text(3, 0), "");
    }

    #[test]
    fn questions_come_round() {
        assert_eq!(question(0), question(QUESTIONS.len()));
        assert_ne!(short_question(0), short_question(1));
    }
}
