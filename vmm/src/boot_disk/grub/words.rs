//! GRUB's script language as text: words, commands and blocks (GRUB manual, 16, "Writing full configuration files").

use std::rc::Rc;

/// Blocks within blocks.
const MAX_DEPTH: usize = 32;

/// A piece of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// As it stands.
    Text(String),
    /// The value of a variable, which is one word if `quoted`.
    Variable { name: String, quoted: bool },
}

/// A word before its variables are replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) parts: Vec<Part>,
    /// It is a word even if nothing is left of it.
    pub(super) quoted: bool,
}

/// Statements, shared by whoever may run them.
pub(super) type Block = Rc<Vec<Statement>>;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Statement {
    /// Words, and the block that follows as of `menuentry`.
    Command {
        words: Vec<Word>,
        block: Option<Block>,
    },
    /// Conditions with what is done for the first that holds, and what is done if none does.
    If {
        branches: Vec<(Block, Block)>,
        otherwise: Block,
    },
    /// What is done for each word.
    For {
        variable: String,
        words: Vec<Word>,
        body: Block,
    },
    /// A loop that is not run: nothing that a boot depends on is in one.
    While,
    /// What is done by a name.
    Function { name: String, body: Block },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(Word),
    /// The end of a command.
    End,
    Open,
    Close,
}

/// Reads `text`. What is malformed in it ends it: GRUB would refuse all of it, and a menu that got this far is better than none.
pub(super) fn parse(text: &str) -> Block {
    let mut parser = Parser {
        tokens: tokens(text),
        at: 0,
    };
    let mut all = Vec::new();
    // What closes nothing is skipped.
    while parser.at < parser.tokens.len() {
        all.extend(parser.statements(&[], 0));
        parser.at += 1;
    }
    Rc::new(all)
}

/// Whether a variable's name may have it.
pub(super) fn is_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

/// Splits `text` into tokens.
fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut word: Option<Word> = None;
    let mut characters = text.chars().peekable();
    let text_of = |word: &mut Option<Word>, character: char| {
        let parts = &mut word.get_or_insert_default().parts;
        match parts.last_mut() {
            Some(Part::Text(text)) => text.push(character),
            _ => parts.push(Part::Text(character.to_string())),
        }
    };
    while let Some(character) = characters.next() {
        match character {
            ' ' | '\t' | '\r' => tokens.extend(word.take().map(Token::Word)),
            '\n' | ';' | '|' | '&' | '<' | '>' => {
                // `<` and `>` are commands of their own nowhere but in a test that compares strings.
                tokens.extend(word.take().map(Token::Word));
                if matches!(character, '\n' | ';' | '|' | '&') {
                    tokens.push(Token::End);
                }
            }
            '#' if word.is_none() => while characters.next_if(|next| *next != '\n').is_some() {},
            '{' | '}' if word.is_none() => {
                tokens.push(if character == '{' {
                    Token::Open
                } else {
                    Token::Close
                });
            }
            '\\' => match characters.next() {
                None | Some('\n') => {}
                Some(escaped) => text_of(&mut word, escaped),
            },
            '\'' => {
                word.get_or_insert_default().quoted = true;
                for quoted in characters.by_ref().take_while(|next| *next != '\'') {
                    text_of(&mut word, quoted);
                }
            }
            '"' => {
                word.get_or_insert_default().quoted = true;
                while let Some(quoted) = characters.next() {
                    match quoted {
                        '"' => break,
                        '\\' => match characters.next() {
                            Some(escaped @ ('"' | '\\' | '$')) => text_of(&mut word, escaped),
                            Some('\n') | None => {}
                            Some(other) => {
                                text_of(&mut word, '\\');
                                text_of(&mut word, other);
                            }
                        },
                        '$' => match variable(&mut characters) {
                            Some(name) => {
                                let parts = &mut word.get_or_insert_default().parts;
                                parts.push(Part::Variable { name, quoted: true });
                            }
                            None => text_of(&mut word, '$'),
                        },
                        other => text_of(&mut word, other),
                    }
                }
            }
            '$' => match variable(&mut characters) {
                Some(name) => {
                    let parts = &mut word.get_or_insert_default().parts;
                    parts.push(Part::Variable {
                        name,
                        quoted: false,
                    });
                }
                // `$"..."` is a text to translate.
                None if characters.peek() == Some(&'"') => {}
                None => text_of(&mut word, '$'),
            },
            other => text_of(&mut word, other),
        }
    }
    tokens.extend(word.map(Token::Word));
    tokens
}

/// The name after a `$`.
fn variable(characters: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<String> {
    match characters.peek()? {
        '{' => {
            characters.next();
            Some(characters.take_while(|next| *next != '}').collect())
        }
        '?' | '*' | '@' | '#' => characters.next().map(String::from),
        first if is_name(*first) => {
            let mut name = String::new();
            while let Some(next) = characters.next_if(|next| is_name(*next)) {
                name.push(next);
            }
            Some(name)
        }
        _ => None,
    }
}

impl Word {
    /// What it says if nothing in it is quoted or to be replaced: keywords are such words.
    fn plain(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [Part::Text(text)] if !self.quoted => Some(text),
            _ => None,
        }
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn keyword(&self) -> Option<&str> {
        match self.peek()? {
            Token::Word(word) => word.plain(),
            _ => None,
        }
    }

    /// Goes past `keyword` if it is next.
    fn take(&mut self, keyword: &str) -> bool {
        let there = self.keyword() == Some(keyword);
        self.at += usize::from(there);
        there
    }

    fn skip_ends(&mut self) {
        while self.peek() == Some(&Token::End) {
            self.at += 1;
        }
    }

    /// The statements up to one of `ends`, a closing brace or the end of all, none of which is taken.
    fn statements(&mut self, ends: &[&str], depth: usize) -> Vec<Statement> {
        let mut statements = Vec::new();
        loop {
            self.skip_ends();
            match self.peek() {
                None | Some(Token::Close) => return statements,
                Some(Token::Open) => {
                    self.at += 1;
                    continue;
                }
                _ => {}
            }
            if self.keyword().is_some_and(|word| ends.contains(&word)) {
                return statements;
            }
            if depth >= MAX_DEPTH {
                // The rest is as if it were not there.
                self.at = self.tokens.len();
                return statements;
            }
            statements.push(self.statement(depth + 1));
        }
    }

    fn block(&mut self, ends: &[&str], depth: usize) -> Block {
        Rc::new(self.statements(ends, depth))
    }

    fn statement(&mut self, depth: usize) -> Statement {
        if self.take("if") {
            return self.conditional(depth);
        }
        if self.take("while") || self.take("until") {
            self.block(&["do"], depth);
            self.take("do");
            self.block(&["done"], depth);
            self.take("done");
            return Statement::While;
        }
        if self.take("for") {
            let variable = self.keyword().unwrap_or_default().to_owned();
            self.at += 1;
            self.take("in");
            let words = self.words();
            self.skip_ends();
            self.take("do");
            let body = self.block(&["done"], depth);
            self.take("done");
            return Statement::For {
                variable,
                words,
                body,
            };
        }
        if self.take("function") {
            let name = self.keyword().unwrap_or_default().to_owned();
            self.at += 1;
            self.skip_ends();
            let body = self.braced(depth).unwrap_or_default();
            return Statement::Function { name, body };
        }
        let words = self.words();
        let block = self.braced(depth);
        Statement::Command { words, block }
    }

    fn words(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.peek() {
            words.push(word.clone());
            self.at += 1;
        }
        words
    }

    /// `{ statements }`, if that is next.
    fn braced(&mut self, depth: usize) -> Option<Block> {
        if self.peek() != Some(&Token::Open) {
            return None;
        }
        self.at += 1;
        let block = self.block(&[], depth);
        if self.peek() == Some(&Token::Close) {
            self.at += 1;
        }
        Some(block)
    }

    fn conditional(&mut self, depth: usize) -> Statement {
        let mut branches = Vec::new();
        let mut otherwise = Block::default();
        loop {
            let condition = self.block(&["then", "fi"], depth);
            self.take("then");
            let body = self.block(&["elif", "else", "fi"], depth);
            branches.push((condition, body));
            if self.take("elif") {
                continue;
            }
            if self.take("else") {
                otherwise = self.block(&["fi"], depth);
            }
            self.take("fi");
            return Statement::If {
                branches,
                otherwise,
            };
        }
    }
}
