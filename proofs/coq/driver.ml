(* Runs the definitions of Statement.v, as Floats.v writes them into statement.ml, on a decoder of
   numbers. Standard input: width heads group half hidden vocabulary rope_theta norm_eps layers, the
   matrices by rows (embedding; of each layer Wq by heads, Wk Wv by groups, Wo by heads, Wgate Wup
   Wdown; unembedding), a layer to remove, the number of tokens, tokens. Output, by position: the score of
   each layer; for each layer and each k from 0 to the number of layers, the divergence at k that its removal
   causes. Then logits and probabilities with all layers; logits without the layer. *)
open Statement

let number () = Scanf.scanf " %f" Fun.id
let whole () = Scanf.scanf " %d" Fun.id

let matrix rows columns =
  let table = Array.init rows (fun _ -> Array.init columns (fun _ -> number ())) in
  fun row column -> table.(row).(column)

let matrices count rows columns =
  let table = Array.init count (fun _ -> matrix rows columns) in
  fun index -> table.(index)

let read_decoder () =
  let width = whole () in
  let heads = whole () in
  let group = whole () in
  let half = whole () in
  let hidden = whole () in
  let vocabulary = whole () in
  let rope_theta = number () in
  let norm_eps = number () in
  let count = whole () in
  let embedding = matrix vocabulary width in
  let read_layer _ =
    let wq = matrices heads (2 * half) width in
    let wk = matrices (heads / group) (2 * half) width in
    let wv = matrices (heads / group) (2 * half) width in
    let wo = matrices heads width (2 * half) in
    let wgate = matrix hidden width in
    let wup = matrix hidden width in
    let wdown = matrix width hidden in
    { wq; wk; wv; wo; wgate; wup; wdown }
  in
  let layers = List.init count read_layer in
  let unembedding = matrix vocabulary width in
  { width; heads; group; half; hidden; vocabulary; rope_theta; norm_eps; embedding; layers; unembedding }

let print values = print_endline (String.concat " " (List.map (Printf.sprintf "%.17g") values))

let () =
  let m = read_decoder () in
  let removed = whole () in
  let length = whole () in
  let tokens = List.init length (fun _ -> whole ()) in
  let positions = List.init length Fun.id in
  let numbers = List.mapi (fun l _ -> l) m.layers in
  let vocabulary = List.init m.vocabulary Fun.id in
  List.iter (fun l -> print (List.map (score m l tokens) positions)) numbers;
  List.iter
    (fun l ->
      List.iter
        (fun k -> print (List.map (divergence m l k tokens) positions))
        (0 :: List.map succ numbers))
    numbers;
  print (List.map (logit m m.layers tokens) vocabulary);
  print (List.map (probability m m.layers tokens) vocabulary);
  print (List.map (logit m (without removed m.layers) tokens) vocabulary)
